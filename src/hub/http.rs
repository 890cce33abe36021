//! Requests to a hub: the token goes to its own host only, redirects are followed by hand, faults are told apart.

use std::io::Read;
use std::time::Duration;

use ureq::Agent;
use ureq::http::{Response, StatusCode};

use crate::Error;

/// Redirects followed for one request.
const MAX_REDIRECTS: usize = 5;

/// The largest answer of the hub's API that is read, bytes.
const MAX_ANSWER: u64 = 16 << 20;

/// How a request failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// Trying again may help: a dropped connection, a server in trouble, too many requests.
    Passing(String),
    /// It will not: what is wrong, for the person who asked.
    Final(Error),
}

/// A hub's endpoint with the token for it.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    agent: Agent,
    base: String,
    token: Option<String>,
}

impl Endpoint {
    /// `base` is scheme, host and port, such as `https://huggingface.co`.
    pub fn new(base: &str, token: Option<String>) -> Self {
        let config = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .user_agent(concat!("immunise/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: Agent::new_with_config(config), base: base.trim_end_matches('/').to_owned(), token }
    }

    /// The address of `path` on this host; what was named by others is a [`segment`] of it.
    pub fn address(&self, path: &str) -> String {
        format!("{}/{path}", self.base)
    }

    /// An answer of the API as JSON. `repo` is for messages.
    pub fn json(&self, repo: &str, path: &str) -> std::result::Result<serde_json::Value, Fault> {
        parsed(repo, self.get(repo, &self.address(path), 0)?)
    }

    /// The rows of one page of a list of the API, and the address of the next page. `repo` is for messages.
    pub fn page(&self, repo: &str, url: &str) -> std::result::Result<(Vec<serde_json::Value>, Option<String>), Fault> {
        let response = self.get(repo, url, 0)?;
        let mut links = response.headers().get_all("link").iter();
        let next = links.find_map(|value| next_page(value.to_str().ok()?)).map(|target| self.here(url, target));
        match parsed(repo, response)? {
            serde_json::Value::Array(rows) => Ok((rows, next)),
            _ => Err(Fault::Final(Error::input(repo, "expected a list from the hub, got something else"))),
        }
    }

    /// `target`, seen from `from`, on this host: a mirror may pass on the addresses of the hub behind it.
    fn here(&self, from: &str, target: &str) -> String {
        let whole = absolute(from, target);
        format!("{}{}", origin(&self.base), &whole[origin(&whole).len()..])
    }

    /// The body of `url` from byte `from` on; the status tells whether the server heeded that.
    pub fn get(&self, repo: &str, url: &str, from: u64) -> std::result::Result<Response<ureq::Body>, Fault> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(&url);
            if from > 0 {
                request = request.header("Range", format!("bytes={from}-"));
            }
            // Whoever the hub redirects to must not learn the token.
            if let Some(token) = self.token.as_ref().filter(|_| same_host(&url, &self.base)) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|error| failed(repo, &url, &error))?;
            let status = response.status();
            if status.is_redirection() {
                let target = response.headers().get("location").and_then(|value| value.to_str().ok());
                let missing = || Fault::Final(Error::input(repo, "expected an address to be redirected to, got none"));
                url = absolute(&url, target.ok_or_else(missing)?);
                continue;
            }
            return if status.is_success() { Ok(response) } else { Err(self.refused(repo, status)) };
        }
        Err(Fault::Final(Error::input(repo, format!("expected at most {MAX_REDIRECTS} redirects, got more"))))
    }

    fn refused(&self, repo: &str, status: StatusCode) -> Fault {
        let code = status.as_u16();
        if status.is_server_error() || code == 429 || code == 408 {
            return Fault::Passing(format!("the hub answered {code}"));
        }
        let error = Error::input(repo, format!("the hub answered {code}"));
        Fault::Final(match (code, &self.token) {
            (401 | 403, None) => error.hint(
                "the model is gated or private: accept its terms on its page, then set HF_TOKEN to a token that may read it",
            ),
            (401 | 403, Some(_)) => error.hint("this token may not read the model: accept its terms, or use another"),
            (404, _) => error.hint("there is no such model, revision or file; names are `ORG/NAME@REVISION`"),
            _ => error,
        })
    }
}

/// A request without an answer: one that can't be put into words won't be another time.
fn failed(repo: &str, url: &str, error: &ureq::Error) -> Fault {
    match error {
        ureq::Error::Http(_) | ureq::Error::BadUri(_) => {
            // What follows a `?` may be a secret of whoever was redirected.
            let place = url.split('?').next().unwrap_or(url);
            let problem = format!("expected an address that can be asked, got `{place}` ({error})");
            let hint = "`HF_ENDPOINT` is scheme, host and port, such as `https://huggingface.co`; a token is one word";
            Fault::Final(Error::input(repo, problem).hint(hint))
        }
        _ => Fault::Passing(error.to_string()),
    }
}

/// The body of an answer as JSON.
fn parsed(repo: &str, response: Response<ureq::Body>) -> std::result::Result<serde_json::Value, Fault> {
    let mut text = String::new();
    let mut body = response.into_body().into_reader().take(MAX_ANSWER);
    body.read_to_string(&mut text).map_err(|error| Fault::Passing(error.to_string()))?;
    serde_json::from_str(&text)
        .map_err(|error| Fault::Final(Error::input(repo, format!("expected JSON from the hub: {error}"))))
}

/// The target with the relation `next` in a `Link` header (RFC 8288).
fn next_page(header: &str) -> Option<&str> {
    header.split('<').skip(1).find_map(|link| {
        let (target, parameters) = link.split_once('>')?;
        let relation = |parameter: &str| {
            let (name, value) = parameter.split_once('=')?;
            (name.trim().eq_ignore_ascii_case("rel")).then(|| value.trim_matches([' ', '"', ',']).to_owned())
        };
        let next = parameters.split(';').filter_map(relation).any(|value| value.split(' ').any(|one| one == "next"));
        next.then_some(target)
    })
}

/// `text` as one segment of a path: all but letters, digits and `-._~` as `%XX`.
pub(super) fn segment(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).into() } else { format!("%{byte:02X}") }).collect()
}

/// Scheme, host and port of an address.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    &url[..end]
}

fn same_host(a: &str, b: &str) -> bool {
    origin(a).eq_ignore_ascii_case(origin(b))
}

/// `target` as a whole address, seen from `from`.
fn absolute(from: &str, target: &str) -> String {
    let path = from.find(['?', '#']).map_or(from, |at| &from[..at]);
    if target.find("://").is_some_and(|at| !target[..at].contains(['/', '?', '#'])) {
        target.to_owned()
    } else if target.starts_with("//") {
        format!("{}{target}", &from[..from.find("//").unwrap_or(0)])
    } else if target.starts_with('?') {
        format!("{path}{target}")
    } else if target.starts_with('/') {
        format!("{}{target}", origin(from))
    } else {
        let parent = path.rfind('/').map_or(path, |at| &path[..at]);
        format!("{parent}/{target}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_stays_with_its_host() {
        let hub = "https://hub.example:8443";
        assert!(same_host("https://HUB.example:8443/a/b?x", hub));
        for other in ["https://hub.example/a", "http://hub.example:8443/a", "https://hub.example:8443.evil.example/"] {
            assert!(!same_host(other, hub), "{other}");
        }
        assert!(!same_host("https://hub.example:8443@evil.example/", hub));
    }

    #[test]
    fn a_segment_says_nothing_but_its_name() {
        assert_eq!(segment("model-00001_of.2~"), "model-00001_of.2~");
        assert_eq!(segment("A B/c?d#e%20é"), "A%20B%2Fc%3Fd%23e%2520%C3%A9");
    }

    #[test]
    fn the_next_page_is_the_one_with_that_relation() {
        let (first, next) = ("<https://a.b/c?cursor=1>; rel=\"first\"", "<https://a.b/c?cursor=2,3;4>; rel=\"next\"");
        for header in [next.to_owned(), format!("{first}, {next}"), format!("{next}, {first}")] {
            assert_eq!(next_page(&header), Some("https://a.b/c?cursor=2,3;4"), "{header}");
        }
        assert_eq!(next_page("</c?p=2>; title=x; REL=next"), Some("/c?p=2"));
        for header in ["", first, "<https://a.b/next", "https://a.b/c; rel=\"next\""] {
            assert_eq!(next_page(header), None, "{header}");
        }
    }

    #[test]
    fn redirects_may_be_relative() {
        assert_eq!(absolute("https://a.b/c/d", "/e"), "https://a.b/e");
        assert_eq!(absolute("https://a.b/c/d", "e"), "https://a.b/c/e");
        assert_eq!(absolute("https://a.b/c/d", "https://x.y/z"), "https://x.y/z");
        assert_eq!(absolute("https://a.b/c/d?e=/f", "//x.y/z"), "https://x.y/z");
        assert_eq!(absolute("https://a.b/c/d?e=/f", "?p=2"), "https://a.b/c/d?p=2");
        assert_eq!(absolute("https://a.b/c/d?e=/f", "g?u=h://i"), "https://a.b/c/g?u=h://i");
    }

    #[test]
    fn further_pages_are_asked_of_the_same_host() {
        let endpoint = Endpoint::new("https://mirror.example/", Some("secret".into()));
        let from = "https://mirror.example/api/models/a/b/tree/main?recursive=true";
        let next = "https://mirror.example/api/models/a/b/tree/main?cursor=2";
        for target in ["https://hub.example/api/models/a/b/tree/main?cursor=2", "?cursor=2", next] {
            assert_eq!(endpoint.here(from, target), next);
        }
    }
}
