//! The tokenizer of `tiny-chat` as Hugging Face files: one token per word of the world, one per digit.
//!
//! The vocabulary is computed from the rows and sorted, so the files are the same bytes wherever they are written and
//! change exactly when the world does. Decoding joins words with spaces and digits without, so that "17" survives.
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::tiny_chat;
use crate::data::PromptSet;
use crate::{Error, Result};

/// Special tokens, in the order of their ids from 0.
pub const SPECIAL_TOKENS: [&str; 6] = ["<pad>", "<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>"];

/// Longest sequence the bundled model is trained on, in tokens.
pub const MAX_LENGTH: usize = 128;

const CHAT_TEMPLATE: &str = "\
{{ bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '<|user|> ' + message['content'] + ' ' + eos_token }}
    {%- elif message['role'] == 'assistant' %}
        {{- '<|assistant|> ' + message['content'] + ' ' + eos_token }}
    {%- else %}
        {{- raise_exception('tiny-chat knows user and assistant turns only') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
";

/// All tokens of the bundled model, the position being the id: special tokens, digits, then words in byte order.
#[must_use]
pub fn vocabulary() -> Vec<String> {
    vocabulary_of(&tiny_chat())
}

fn vocabulary_of(world: &PromptSet) -> Vec<String> {
    let mut words = BTreeSet::new();
    for row in &world.examples {
        for text in [Some(&row.prompt), row.answer.as_ref(), row.target.as_ref()].into_iter().flatten() {
            words.extend(text.split_whitespace().filter(|word| !word.bytes().all(|byte| byte.is_ascii_digit())));
        }
    }
    let special = SPECIAL_TOKENS.iter().map(|&token| token.to_owned());
    let digits = (0..10).map(|digit| digit.to_string());
    special.chain(digits).chain(words.into_iter().map(str::to_owned)).collect()
}

/// Writes `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and `chat_template.jinja` into `dir`.
///
/// *Errors*: [`Error::Io`] for the file that cannot be written.
pub fn write_tokenizer_files(dir: &Path) -> Result<()> {
    for (name, content) in tokenizer_files() {
        let path = dir.join(name);
        fs::write(&path, content).map_err(|error| Error::io(path, error))?;
    }
    Ok(())
}

/// The tokenizer's files, each as name and content.
#[must_use]
pub fn tokenizer_files() -> [(&'static str, String); 4] {
    [
        ("tokenizer.json", pretty(&tokenizer_json())),
        ("tokenizer_config.json", pretty(&tokenizer_config())),
        ("special_tokens_map.json", pretty(&special_tokens_map())),
        ("chat_template.jinja", CHAT_TEMPLATE.to_owned()),
    ]
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn added_token(id: usize, content: &str) -> Map<String, Value> {
    let mut token = Map::new();
    token.insert("id".into(), json!(id));
    token.insert("content".into(), json!(content));
    for flag in ["single_word", "lstrip", "rstrip", "normalized"] {
        token.insert(flag.into(), json!(false));
    }
    token.insert("special".into(), json!(true));
    token
}

fn tokenizer_json() -> Value {
    let vocabulary = vocabulary();
    let added: Vec<_> = SPECIAL_TOKENS.iter().enumerate().map(|(id, token)| added_token(id, token)).collect();
    let vocab: Map<String, Value> = vocabulary.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
    let bos = json!({ "SpecialToken": { "id": "<s>", "type_id": 0 } });
    let sequence = |id: &str, type_id: u32| json!({ "Sequence": { "id": id, "type_id": type_id } });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": { "type": "Lowercase" },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                { "type": "WhitespaceSplit" },
                { "type": "Punctuation", "behavior": "Isolated" },
                { "type": "Digits", "individual_digits": true },
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, sequence("A", 0)],
            "pair": [bos, sequence("A", 0), sequence("B", 1)],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } },
        },
        // A space before every token, none before the first and none between digits.
        "decoder": {
            "type": "Sequence",
            "decoders": [
                { "type": "Replace", "pattern": { "Regex": "^" }, "content": " " },
                { "type": "Fuse" },
                { "type": "Replace", "pattern": { "Regex": "(?<=[0-9]) (?=[0-9])" }, "content": "" },
                { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
            ],
        },
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" },
    })
}

fn tokenizer_config() -> Value {
    let decoder: Map<String, Value> = SPECIAL_TOKENS
        .iter()
        .enumerate()
        .map(|(id, token)| {
            let mut token = added_token(id, token);
            token.shift_remove("id");
            (id.to_string(), Value::Object(token))
        })
        .collect();
    json!({
        "added_tokens_decoder": decoder,
        "additional_special_tokens": SPECIAL_TOKENS[4..],
        "bos_token": "<s>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": false,
        "eos_token": "</s>",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": MAX_LENGTH,
        "pad_token": "<pad>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
    })
}

fn special_tokens_map() -> Value {
    json!({
        "additional_special_tokens": SPECIAL_TOKENS[4..],
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    })
}
