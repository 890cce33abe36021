//! Chat templates: the Jinja program beside a checkpoint that turns messages into the text the model was trained on.
//!
//! Rendered as Hugging Face transformers does it (block trimming, Python methods on strings, plain JSON), with two
//! deliberate differences. The clock is an argument with a fixed default, because a prompt that changes with the date
//! would change every number measured with it. And a template is untrusted code, so it runs on a limited amount of fuel:
//! that bounds time, but not memory, which a template can still waste by doubling a string.
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, ErrorKind};

use crate::checkpoint::files;
use crate::{Error, Result};

/// Instructions that one rendering may execute; the longest template known to us uses under two thousand a message.
const FUEL: u64 = 2_000_000;

const NAME: &str = "chat";

/// One turn of a dialogue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A turn of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// The day that templates asking for the date are told, as year, month and day.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Date {
    /// Gregorian year.
    pub year: u32,
    /// 1 to 12.
    pub month: u32,
    /// 1 to 31.
    pub day: u32,
}

/// The date every rendering sees unless another is given.
pub const DEFAULT_DATE: Date = Date { year: 2024, month: 7, day: 26 };

/// A compiled chat template with the special tokens it may name.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    file: String,
    tokens: Vec<(&'static str, String)>,
}

impl ChatTemplate {
    /// Reads the template of the checkpoint in `dir`: `chat_template.jinja`, else the `chat_template` of
    /// `tokenizer_config.json` (a string, or a list of named ones, of which `default` is taken).
    ///
    /// *Errors*: [`Error::Input`] naming the file if there is no template, or one that does not compile.
    pub fn open(dir: &Path) -> Result<Self> {
        let config_path = dir.join("tokenizer_config.json");
        let config: serde_json::Value = match read(&config_path)? {
            Some(text) => serde_json::from_str(&text)
                .map_err(|error| Error::file(&config_path, format!("expected JSON, got `{error}`")))?,
            None => serde_json::Value::Null,
        };
        let path = dir.join("chat_template.jinja");
        let (path, source) = match read(&path)? {
            Some(source) => (path, source),
            None => match configured_template(&config).map_err(|problem| Error::file(&config_path, problem))? {
                Some(source) => (config_path, source),
                None => {
                    return Err(Error::file(dir, "expected a chat template, got none").hint(
                        "put a `chat_template.jinja` beside the weights; a base model without one has no chat format",
                    ));
                }
            },
        };
        Self::compile(&path.display().to_string(), source, special_tokens(&config))
    }

    fn compile(file: &str, source: String, tokens: Vec<(&'static str, String)>) -> Result<Self> {
        let unusable = |error: minijinja::Error| Error::input(file, format!("expected a chat template, got `{error}`"));
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(unusable)?;
        let mut environment = Environment::new();
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", tojson);
        environment.add_template_owned(NAME, without_generation_tags(&source)).map_err(unusable)?;
        Ok(Self { environment, file: file.to_owned(), tokens }.with_date(DEFAULT_DATE))
    }

    /// The same template, told that today is `date` (at midnight).
    #[must_use]
    pub fn with_date(mut self, date: Date) -> Self {
        self.environment.add_function("strftime_now", move |format: &str| strftime(format, date));
        self
    }

    /// The text of `messages`, with the start of an assistant's turn if `add_generation_prompt`.
    ///
    /// *Errors*: [`Error::Input`] naming the template's file, with what the template itself raised or what stopped it.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_with(messages, add_generation_prompt, |text| Value::from(text))
    }

    /// The same where the template expects every message as a list of typed parts: `[{type: text, text: …}]`.
    ///
    /// *Errors*: as [`ChatTemplate::render`].
    pub fn render_parts(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let part = |text: &str| Value::from_pairs([("type", "text"), ("text", text)]);
        self.render_with(messages, add_generation_prompt, |text| Value::from(vec![part(text)]))
    }

    fn render_with(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        content: impl Fn(&str) -> Value,
    ) -> Result<String> {
        let turn = |message: &Message| {
            Value::from_pairs([("role", Value::from(message.role.as_str())), ("content", content(&message.content))])
        };
        let messages: Value = messages.iter().map(turn).collect();
        let mut context = vec![
            ("messages", messages),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ];
        context.extend(self.tokens.iter().map(|(name, token)| (*name, Value::from(token.as_str()))));
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render(Value::from_pairs(context)))
            .map_err(|error| Error::input(&self.file, format!("chat template failed: {error}")))
    }

    /// The text of the end-of-sequence token, where the tokenizer's configuration names one.
    #[must_use]
    pub fn eos_token(&self) -> Option<&str> {
        self.token("eos_token")
    }

    /// The text of the beginning-of-sequence token, where the tokenizer's configuration names one.
    #[must_use]
    pub fn bos_token(&self) -> Option<&str> {
        self.token("bos_token")
    }

    fn token(&self, wanted: &str) -> Option<&str> {
        self.tokens.iter().find(|(name, _)| *name == wanted).map(|(_, token)| token.as_str())
    }
}

fn read(path: &Path) -> Result<Option<String>> {
    if path.exists() { files::read_text(path, files::MAX_DESCRIPTION).map(Some) } else { Ok(None) }
}

fn configured_template(config: &serde_json::Value) -> Result<Option<String>, String> {
    match config.get("chat_template") {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(serde_json::Value::String(source)) => Ok(Some(source.clone())),
        Some(serde_json::Value::Array(named)) => {
            let name = |entry: &serde_json::Value| entry["name"].as_str().unwrap_or_default().to_owned();
            let chosen = match named.as_slice() {
                [only] => Some(only),
                _ => named.iter().find(|entry| name(entry) == "default"),
            };
            chosen.and_then(|entry| entry["template"].as_str()).map(|source| Some(source.to_owned())).ok_or_else(|| {
                let names: Vec<String> = named.iter().map(name).collect();
                format!("`chat_template`: expected a template named `default`, got {names:?}")
            })
        }
        Some(_) => Err("`chat_template`: expected a string or a list of named templates, got something else".into()),
    }
}

fn special_tokens(config: &serde_json::Value) -> Vec<(&'static str, String)> {
    ["bos_token", "eos_token", "pad_token", "unk_token"]
        .into_iter()
        .filter_map(|name| {
            let token = &config[name];
            let text = token.as_str().or_else(|| token["content"].as_str())?;
            Some((name, text.to_owned()))
        })
        .collect()
}

/// Transformers marks assistant text with `{% generation %}` for training masks; a block that is always taken keeps the
/// white space rules of the tags and drops the meaning.
fn without_generation_tags(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        // An end is looked for behind the beginning: `{%}` is no tag.
        let Some(length) = rest[start + 2..].find("%}") else { break };
        let (tag, after) = rest[start..].split_at(length + 4);
        result += &rest[..start];
        match tag[2..length + 2].trim_matches(['-', '+']).trim() {
            "generation" => result += &tag.replace("generation", "if true"),
            "endgeneration" => result += &tag.replace("endgeneration", "endif"),
            _ => result += tag,
        }
        rest = after;
    }
    result + rest
}

fn raise_exception(message: &str) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// `json.dumps(value, ensure_ascii=False)`: unlike the engine's own filter, nothing is escaped for HTML.
fn tojson(value: &Value, arguments: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<Value> = arguments.get("indent")?;
    let none = std::iter::empty::<(String, Value)>().collect();
    let escaped = minijinja::filters::tojson(value, indent.filter(|indent| !indent.is_none()), none)?.to_string();
    let mut json = String::with_capacity(escaped.len());
    let mut rest = escaped.as_str();
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        json += before;
        let plain = ["<", ">", "&", "'"].into_iter().zip(["\\u003c", "\\u003e", "\\u0026", "\\u0027"]);
        let (text, length) = match { plain }.find(|(_, code)| escape.starts_with(code)) {
            Some((plain, code)) => (plain, code.len()),
            None => (&escape[..2], 2),
        };
        json += text;
        rest = &escape[length..];
    }
    Ok(json + rest)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

fn strftime(format: &str, date: Date) -> Result<String, minijinja::Error> {
    let invalid = |problem: String| minijinja::Error::new(ErrorKind::InvalidOperation, problem);
    let index = usize::try_from(date.month).ok().and_then(|month| month.checked_sub(1)).filter(|&month| month < 12);
    let month = MONTHS[index.ok_or_else(|| invalid(format!("expected a month from 1 to 12, got {}", date.month)))?];
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        match characters.next() {
            Some('Y') => text += &date.year.to_string(),
            Some('y') => text += &format!("{:02}", date.year % 100),
            Some('m') => text += &format!("{:02}", date.month),
            Some('d') => text += &format!("{:02}", date.day),
            Some('B') => text += month,
            Some('b') => text += &month[..3],
            Some('A') => text += weekday(date),
            Some('a') => text += &weekday(date)[..3],
            Some('H' | 'M' | 'S') => text += "00",
            Some('%') => text.push('%'),
            other => {
                return Err(invalid(format!(
                    "strftime_now: expected a known directive, got `%{}`",
                    other.unwrap_or(' ')
                )));
            }
        }
    }
    Ok(text)
}

/// Day of the week by Zeller's congruence with March as the first month.
fn weekday(date: Date) -> &'static str {
    let year = if date.month < 3 { date.year.saturating_sub(1) } else { date.year };
    let offset = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4][(date.month.clamp(1, 12) - 1) as usize];
    WEEKDAYS[((year + year / 4 - year / 100 + year / 400 + offset + date.day) % 7) as usize]
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::compile("inline", source.into(), vec![("bos_token", "<s>".into()), ("eos_token", "</s>".into())])
            .unwrap()
    }

    fn dialogue() -> Vec<Message> {
        vec![
            Message::new("system", " be brief "),
            Message::new("user", "it's <b> & \"c\""),
            Message::new("assistant", "é 🙂"),
        ]
    }

    #[test]
    fn a_tag_that_ends_within_its_beginning_is_no_tag() {
        assert_eq!(without_generation_tags("a{%}b"), "a{%}b");
        assert_eq!(without_generation_tags("{{ '{%}' }}{% generation %}x"), "{{ '{%}' }}{% generation %}x");
        assert_eq!(without_generation_tags("{%- generation +%}x{%endgeneration%}"), "{%- if true +%}x{%endif%}");
        assert!(ChatTemplate::compile("inline", "a{%}b".into(), vec![]).is_err());
    }

    #[test]
    fn blocks_are_trimmed_as_transformers_trims_them() {
        let source = "{{ bos_token }}\n{% for m in messages %}\n    {% if m.role == 'user' %}\nU {{ m['content'] | trim }}\n    {% endif %}\n{% endfor %}\nend\n";
        assert_eq!(template(source).render(&dialogue(), false).unwrap(), "<s>\nU it's <b> & \"c\"\nend");
    }

    #[test]
    fn python_methods_slices_and_namespaces_work() {
        let source = "{%- set ns = namespace(n=0) -%}{%- for m in messages[1:] -%}{%- set ns.n = ns.n + 1 -%}{{ loop.index0 }}{{ m.content.split(' ')[-1].upper() }}{%- endfor -%}|{{ ns.n }}|{{ messages[0]['content'].strip() }}|{{ 'x' if 'be' in messages[0].content else 'y' }}";
        assert_eq!(template(source).render(&dialogue(), false).unwrap(), "0\"C\"1🙂|2|be brief|x");
    }

    #[test]
    fn json_is_not_escaped_for_html() {
        let source = "{{ messages[1].content | tojson }} {{ {'k': [1, 'a\\\\u003cb']} | tojson }} {{ messages[0] | tojson(ensure_ascii=false) }}";
        let expected = r#""it's <b> & \"c\"" {"k": [1, "a\\u003cb"]} {"role": "system", "content": " be brief "}"#;
        assert_eq!(template(source).render(&dialogue(), false).unwrap(), expected);
    }

    #[test]
    fn generation_tags_are_blocks_without_meaning() {
        let source = "a {%- generation %} b {% if true %}c{% endif %} {% endgeneration -%} d";
        assert_eq!(template(source).render(&[], false).unwrap(), "a b c d");
    }

    #[test]
    fn what_a_template_raises_is_what_the_reader_sees() {
        let error = template("{{ raise_exception('no system turn') }}").render(&[], false).unwrap_err();
        assert!(
            error.to_string().contains("inline: chat template failed") && error.to_string().contains("no system turn")
        );
    }

    #[test]
    fn an_endless_template_runs_out_of_fuel() {
        let source = "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
        let error = template(source).render(&[], false).unwrap_err();
        assert!(error.to_string().contains("fuel"), "{error}");
    }

    #[test]
    fn the_date_is_an_argument() {
        let template = template("{{ strftime_now('%d %b %Y %A %B %a %y-%m') }}");
        assert_eq!(template.render(&[], false).unwrap(), "26 Jul 2024 Friday July Fri 24-07");
        let leap = template.with_date(Date { year: 2000, month: 2, day: 29 });
        assert_eq!(leap.render(&[], false).unwrap(), "29 Feb 2000 Tuesday February Tue 00-02");
    }

    #[test]
    fn absent_tools_are_none_and_not_undefined() {
        assert_eq!(
            template("{% if tools is not none %}t{% endif %}{% if tools %}u{% endif %}-").render(&[], true).unwrap(),
            "-"
        );
    }

    #[test]
    fn the_jinja_file_wins_and_a_list_falls_back_to_default() {
        let dir = tempfile::tempdir().unwrap();
        let config = r#"{"eos_token": {"content": "<eos>"}, "chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d{{ eos_token }}"}]}"#;
        fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        assert_eq!(ChatTemplate::open(dir.path()).unwrap().render(&[], false).unwrap(), "d<eos>");
        fs::write(dir.path().join("chat_template.jinja"), "j{{ eos_token }}").unwrap();
        assert_eq!(ChatTemplate::open(dir.path()).unwrap().render(&[], false).unwrap(), "j<eos>");
    }

    #[test]
    fn no_template_is_an_error_with_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        let error = ChatTemplate::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("expected a chat template, got none") && error.contains("hint: "), "{error}");
        fs::write(dir.path().join("tokenizer_config.json"), r#"{"chat_template": 3}"#).unwrap();
        assert!(
            ChatTemplate::open(dir.path()).unwrap_err().to_string().contains("tokenizer_config.json: `chat_template`")
        );
        fs::write(dir.path().join("chat_template.jinja"), "{% if %}").unwrap();
        assert!(
            ChatTemplate::open(dir.path()).unwrap_err().to_string().contains("chat_template.jinja: expected a chat")
        );
    }
}
