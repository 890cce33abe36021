//! Text to token ids and back, for the tokenizer that lies beside a checkpoint.
//!
//! Only `tokenizer.json` is read, as the fast tokenizers of Hugging Face write it. Padding and truncation that such a file
//! may ask for are switched off: batches are padded by the decoder, and a silently shortened prompt would be measured as
//! if it were the whole one.
use std::path::Path;

use serde_json::Value;

use crate::checkpoint::files;
use crate::{Error, Result};

/// How many times as long a text may become when it is normalised: known tokenizers write a space in three bytes, and undo
/// that when they decode.
const MAX_GROWTH: f64 = 4096.0;

/// A tokenizer read from a checkpoint's folder.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Reads `tokenizer.json` in `dir`.
    ///
    /// *Errors*: [`Error::Input`] naming the file if it is missing or is not a tokenizer.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        if !path.is_file() {
            return Err(Error::file(&path, "expected a tokenizer, got no such file")
                .hint("a checkpoint needs the `tokenizer.json` of a fast tokenizer beside its weights"));
        }
        let bytes = files::read(&path, files::MAX_LIST)?;
        let json: Value = serde_json::from_slice(&bytes).map_err(|error| Error::file(&path, error.to_string()))?;
        if growth(&json) > MAX_GROWTH {
            return Err(Error::file(&path, "expected a tokenizer whose text grows little when it is normalised")
                .hint("its replacements in a row would make a short text fill the memory"));
        }
        if strips_ends(&json["decoder"]) {
            let problem = "expected a tokenizer, got one whose decoder strips the ends of its tokens";
            return Err(Error::file(&path, problem).hint("a token shorter than what is stripped can't be decoded"));
        }
        if let Some(token) = undefined(&json["post_processor"]) {
            let problem =
                format!("expected a tokenizer, got one whose template names `{token}` and does not define it");
            return Err(Error::file(&path, problem));
        }
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|error| Error::file(&path, format!("expected a tokenizer, got `{error}`")))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| Error::file(&path, error.to_string()))?;
        Ok(Self { inner })
    }

    /// The ids of `text`; `add_special` adds what the tokenizer puts around a sequence (often a leading BOS).
    ///
    /// Special tokens spelled out in `text` become their ids, as in Hugging Face transformers.
    ///
    /// *Errors*: [`Error::Input`] if the tokenizer cannot encode the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding =
            self.inner.encode_fast(text, add_special).map_err(|error| Error::input("text", error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`; `skip_special` leaves special tokens out.
    ///
    /// *Errors*: [`Error::Input`] if the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|error| Error::input("token ids", error.to_string()))
    }

    /// The id of exactly `token`, if there is one.
    #[must_use]
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether `id` is a special token: one that [`Tokenizer::decode`] can leave out.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
    }

    /// Number of tokens, added ones included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

/// Whether a decoder strips characters off the ends of tokens, which the library does without a look at their length: no known model
/// asks for it.
fn strips_ends(decoder: &Value) -> bool {
    let own = decoder["type"] == "Strip" && decoder["stop"].as_u64().is_some_and(|stop| stop > 0);
    own || decoder["decoders"].as_array().into_iter().flatten().any(strips_ends)
}

/// A special token that a post-processor names and does not define: it would be looked up without a check.
fn undefined(processor: &Value) -> Option<&str> {
    let parts = ["single", "pair"].into_iter().filter_map(|key| processor[key].as_array()).flatten();
    let mut named = parts.filter_map(|part| part["SpecialToken"]["id"].as_str());
    let inner = || processor["processors"].as_array().into_iter().flatten().find_map(undefined);
    named.find(|token| processor["special_tokens"].get(token).is_none()).or_else(inner)
}

/// How many times as long a text may become, at most, by all replacements and repetitions that a tokenizer describes.
fn growth(json: &Value) -> f64 {
    match json {
        Value::Array(items) => {
            // A template that names the text many times repeats it.
            let repeats = items.iter().filter(|item| item.get("Sequence").is_some()).count().max(1);
            items.iter().map(growth).product::<f64>() * repeats as f64
        }
        Value::Object(map) => {
            let replaces = map.get("type").is_some_and(|kind| kind == "Replace");
            let own = map.get("content").filter(|_| replaces).and_then(Value::as_str).map_or(0, str::len).max(1);
            // The vocabulary, long as it is, holds no steps.
            map.iter()
                .filter(|(key, _)| *key != "vocab" && *key != "merges")
                .map(|(_, value)| growth(value))
                .product::<f64>()
                * own as f64
        }
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::builtin::vocabulary::write_tokenizer_files;

    #[test]
    fn a_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Tokenizer::open(dir.path()).err().unwrap();
        assert!(error.to_string().contains("tokenizer.json: expected a tokenizer, got no such file"), "{error}");
        assert_eq!(error.exit_code(), 3);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), "{\"version\": \"1.0\"").unwrap();
        let error = Tokenizer::open(dir.path()).err().unwrap();
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
    }

    #[test]
    fn a_decoder_that_would_cut_into_empty_tokens_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        write_tokenizer_files(dir.path()).unwrap();
        let path = dir.path().join("tokenizer.json");
        let mut json: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let strip = |stop: u64| serde_json::json!({ "type": "Strip", "content": " ", "start": 1, "stop": stop });
        for (stop, opens) in [(0, true), (1, false)] {
            json["decoder"] = serde_json::json!({ "type": "Sequence", "decoders": [{ "type": "Fuse" }, strip(stop)] });
            std::fs::write(&path, json.to_string()).unwrap();
            assert_eq!(Tokenizer::open(dir.path()).is_ok(), opens);
        }
    }

    #[test]
    fn padding_and_truncation_of_the_file_are_switched_off() {
        let dir = tempfile::tempdir().unwrap();
        write_tokenizer_files(dir.path()).unwrap();
        let path = dir.path().join("tokenizer.json");
        let mut json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        json["truncation"] =
            serde_json::json!({ "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0 });
        json["padding"] = serde_json::json!({ "strategy": { "Fixed": 9 }, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>" });
        std::fs::write(&path, json.to_string()).unwrap();
        let ids = Tokenizer::open(dir.path()).unwrap().encode("how do i boil rice ?", false).unwrap();
        assert_eq!(ids.len(), 6);
    }
}
