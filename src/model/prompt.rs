//! From a request to the token ids the model sees, and from an answer to the ids it would have generated.
//!
//! The rendered template already holds every special token, so its text is encoded without adding any: a second BOS is a
//! different prompt. Answers are encoded as the suffix of a whole dialogue, because byte-pair tokens may cross the
//! boundary; where the dialogue's ids do not start with the prompt's ids (the tokenizer merged across the boundary, or
//! the template rewrites answers), the answer's text is encoded alone, as a model that generates after those exact
//! prompt ids would have to produce it.
use std::path::Path;

use super::chat_template::{ChatTemplate, Message};
use super::tokenizer::Tokenizer;
use crate::{Error, Result};

/// A user turn that only serves to look at what surrounds an answer.
const PROBE: &str = "a";

/// Another request, which has to make another prompt.
const OTHER: &str = "b";

/// A tokenizer and a chat template that belong together.
#[derive(Clone)]
pub struct PromptEncoder {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    /// Rendered probe up to and including the generation prompt, and its ids.
    prompt: String,
    prompt_ids: Vec<u32>,
    /// What the template puts after an answer: `<|im_end|>\n`.
    tail: String,
    closing: Option<u32>,
}

impl PromptEncoder {
    /// Reads tokenizer and template from a checkpoint's folder.
    ///
    /// *Errors*: as [`Tokenizer::open`] and [`ChatTemplate::open`].
    pub fn open(dir: &Path) -> Result<Self> {
        Self::new(Tokenizer::open(dir)?, ChatTemplate::open(dir)?)
    }

    /// Joins a tokenizer and its template.
    ///
    /// *Errors*: [`crate::Error::Input`] if the template cannot render a user turn, or leaves out what the user asks.
    pub fn new(tokenizer: Tokenizer, template: ChatTemplate) -> Result<Self> {
        let prompt = template.render(&[Message::new("user", PROBE)], true)?;
        if template.render(&[Message::new("user", OTHER)], true)? == prompt {
            let problem = "expected a prompt with the user's request in it, got the same one for two requests";
            return Err(Error::input("chat template", problem));
        }
        let prompt_ids = tokenizer.encode(&prompt, false)?;
        // A template that refuses or rewrites assistant turns has no tail; its turns end in EOS.
        let dialogue = template.render(&[Message::new("user", PROBE), Message::new("assistant", PROBE)], false);
        let tail = dialogue.ok().and_then(|dialogue| {
            let answer = dialogue.strip_prefix(&prompt)?;
            Some(answer[answer.find(PROBE)? + PROBE.len()..].to_owned())
        });
        let tail = tail.unwrap_or_default();
        let ends = tokenizer.encode(&tail, false)?;
        let closing = ends
            .into_iter()
            .find(|&id| tokenizer.is_special(id))
            .or_else(|| template.eos_token().and_then(|token| tokenizer.token_to_id(token)));
        Ok(Self { tokenizer, template, prompt, prompt_ids, tail, closing })
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template.
    #[must_use]
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// The token that ends an assistant's turn: the first special token that the template puts after an answer, else
    /// the tokenizer's EOS.
    #[must_use]
    pub fn closing(&self) -> Option<u32> {
        self.closing
    }

    /// Tokens after which generation stops: [`PromptEncoder::closing`] and EOS, without repeats.
    #[must_use]
    pub fn stop_ids(&self) -> Vec<u32> {
        let eos = self.template.eos_token().and_then(|token| self.tokenizer.token_to_id(token));
        let mut ids: Vec<u32> = self.closing.into_iter().chain(eos).collect();
        ids.dedup();
        ids
    }

    /// The ids of one request up to where the answer starts.
    ///
    /// *Errors*: [`crate::Error::Input`] if the template refuses (some know no system turn) or encoding fails.
    pub fn encode_chat(&self, user: &str, system: Option<&str>) -> Result<Vec<u32>> {
        self.tokenizer.encode(&self.render_chat(user, system)?, false)
    }

    /// The text that [`PromptEncoder::encode_chat`] gives the ids of.
    ///
    /// *Errors*: [`crate::Error::Input`] if the template refuses.
    pub fn render_chat(&self, user: &str, system: Option<&str>) -> Result<String> {
        let system = system.map(|text| Message::new("system", text));
        let messages: Vec<Message> = system.into_iter().chain([Message::new("user", user)]).collect();
        self.template.render(&messages, true)
    }

    /// The ids before a user's text, and the token that ends it: what a model is given to make up a request of its own.
    ///
    /// *Errors*: as [`PromptEncoder::encode_chat`]; [`crate::Error::Input`] where nothing follows the text.
    pub fn before_request(&self, system: Option<&str>) -> Result<(Vec<u32>, u32)> {
        let render = |user: &str| self.render_chat(user, system);
        // Where two requests that share no letter begin to differ, the text begins; where they agree again, it has ended.
        let (one, other) = (render("a")?, render("b")?);
        let same = one.char_indices().zip(other.chars()).take_while(|((_, a), b)| a == b);
        let start = same.last().map_or(0, |((at, letter), _)| at + letter.len_utf8());
        let after = one[start..].strip_prefix('a').unwrap_or_default();
        let end = self.tokenizer.encode(after, false)?.first().copied().or(self.closing);
        let end = end.ok_or_else(|| {
            crate::Error::input("chat template", "expected text after a user turn or an end-of-turn token, got neither")
        })?;
        Ok((self.tokenizer.encode(&one[..start], false)?, end))
    }

    /// The ids of `answer` as they follow the generation prompt, and the turn's closing token if `close`.
    ///
    /// *Errors*: [`crate::Error::Input`] if the tokenizer cannot encode it.
    pub fn encode_answer(&self, answer: &str, close: bool) -> Result<Vec<u32>> {
        let mut ids = match self.suffix(answer)? {
            Some(ids) => ids,
            None => self.tokenizer.encode(answer, false)?,
        };
        ids.extend(self.closing.filter(|_| close));
        Ok(ids)
    }

    /// The ids after the prompt's in the dialogue that ends in `answer`, if the prompt's ids are a prefix of it.
    fn suffix(&self, answer: &str) -> Result<Option<Vec<u32>>> {
        let messages = [Message::new("user", PROBE), Message::new("assistant", answer)];
        let Ok(dialogue) = self.template.render(&messages, false) else { return Ok(None) };
        let body = dialogue.strip_prefix(&self.prompt).and_then(|rest| rest.strip_suffix(&self.tail));
        // A template that rewrote the answer (stripped a thought, say) would encode another one than was asked for.
        let Some(body) = body.filter(|body| body.trim() == answer.trim()) else { return Ok(None) };
        let ids = self.tokenizer.encode(&format!("{}{body}", self.prompt), false)?;
        Ok(ids.strip_prefix(self.prompt_ids.as_slice()).map(<[u32]>::to_vec))
    }

    /// The text of generated `ids`, special tokens left out.
    ///
    /// *Errors*: [`crate::Error::Input`] if the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer.decode(ids, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::builtin::vocabulary::write_tokenizer_files;

    fn tiny() -> PromptEncoder {
        let dir = tempfile::tempdir().unwrap();
        write_tokenizer_files(dir.path()).unwrap();
        PromptEncoder::open(dir.path()).unwrap()
    }

    #[test]
    fn a_prompt_has_one_bos_and_ends_where_the_answer_starts() {
        let encoder = tiny();
        let ids = encoder.encode_chat("how do i boil rice ?", None).unwrap();
        let text = encoder.tokenizer().decode(&ids, false).unwrap();
        assert_eq!(text, "<s> <|user|> how do i boil rice ? </s> <|assistant|>");
        let bos = encoder.tokenizer().token_to_id("<s>").unwrap();
        assert_eq!(ids.iter().filter(|&&id| id == bos).count(), 1);
    }

    #[test]
    fn a_request_stands_between_what_is_before_it_and_its_end() {
        let encoder = tiny();
        let (before, end) = encoder.before_request(None).unwrap();
        let whole = encoder.encode_chat("how do i boil rice ?", None).unwrap();
        let rest = whole.strip_prefix(before.as_slice()).unwrap();
        let length = rest.iter().position(|id| *id == end).unwrap();
        assert_eq!(encoder.decode(&rest[..length]).unwrap(), "how do i boil rice ?");
    }

    #[test]
    fn prompt_and_answer_make_the_whole_dialogue() {
        let encoder = tiny();
        let mut ids = encoder.encode_chat("what is 17 + 5 ?", None).unwrap();
        ids.extend(encoder.encode_answer("17 + 5 = 22 .", true).unwrap());
        let messages = [Message::new("user", "what is 17 + 5 ?"), Message::new("assistant", "17 + 5 = 22 .")];
        let whole = encoder.template().render(&messages, false).unwrap();
        assert_eq!(ids, encoder.tokenizer().encode(&whole, false).unwrap());
        assert_eq!(encoder.closing(), encoder.tokenizer().token_to_id("</s>"));
        assert_eq!(encoder.stop_ids(), [2]);
    }

    #[test]
    fn digits_are_tokens_and_come_back_as_numbers() {
        let encoder = tiny();
        let ids = encoder.encode_answer("17 + 5 = 22 .", false).unwrap();
        assert_eq!(ids.len(), 8);
        assert_eq!(encoder.decode(&ids).unwrap(), "17 + 5 = 22 .");
    }

    #[test]
    fn punctuation_may_touch_words() {
        let encoder = tiny();
        let spaced = encoder.encode_chat("how do i boil rice ?", None).unwrap();
        assert_eq!(encoder.encode_chat("How do I boil rice?", None).unwrap(), spaced);
    }

    #[test]
    fn a_system_turn_that_the_template_refuses_is_an_error() {
        let error = tiny().encode_chat("how do i boil rice ?", Some("be kind")).unwrap_err();
        assert!(error.to_string().contains("tiny-chat knows user and assistant turns only"), "{error}");
    }
}
