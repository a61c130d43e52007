//! The four forms of `prompt`: text, list of texts, token ids, list of token-id lists.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

use super::params::MAX_CHOICES;

/// What stands in a prompt list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// The field `prompt`, always as a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prompts(pub Vec<Prompt>);

/// One element of the outer list.
enum Element {
    Id(u32),
    Prompt(Prompt),
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PromptsVisitor)
    }
}

struct PromptsVisitor;

impl<'de> Visitor<'de> for PromptsVisitor {
    type Value = Prompts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a string, a list of token ids, or a list of strings or token-id lists, at most {MAX_CHOICES}"
        )
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Prompts, E> {
        Ok(Prompts(vec![Prompt::Text(text.to_owned())]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompts, A::Error> {
        let mut ids = Vec::new();
        let mut prompts = Vec::new();
        while let Some(element) = seq.next_element()? {
            match element {
                Element::Id(id) => ids.push(id),
                Element::Prompt(prompt) => prompts.push(prompt),
            }
            if prompts.len() > MAX_CHOICES {
                return Err(A::Error::invalid_length(prompts.len(), &self));
            }
            if !ids.is_empty() && !prompts.is_empty() {
                return Err(A::Error::custom("prompt mixes token ids with strings or lists"));
            }
        }
        if !ids.is_empty() {
            prompts.push(Prompt::Ids(ids));
        }
        Ok(Prompts(prompts))
    }
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ElementVisitor)
    }
}

struct ElementVisitor;

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a token id, a string or a list of token ids")
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<Element, E> {
        // Ids beyond u32 are beyond every vocabulary; u32::MAX is refused with the rest of those.
        Ok(Element::Id(u32::try_from(id).unwrap_or(u32::MAX)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Element, E> {
        Ok(Element::Prompt(Prompt::Text(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Element, A::Error> {
        let mut ids: Vec<u32> = Vec::new();
        while let Some(id) = seq.next_element::<u64>()? {
            ids.push(u32::try_from(id).unwrap_or(u32::MAX));
        }
        Ok(Element::Prompt(Prompt::Ids(ids)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Vec<Prompt>, serde_json::Error> {
        serde_json::from_str::<Prompts>(json).map(|p| p.0)
    }

    #[test]
    fn four_forms() {
        let text = |s: &str| Prompt::Text(s.to_owned());
        assert_eq!(parse(r#""a""#).unwrap(), [text("a")]);
        assert_eq!(parse(r#"["a","b"]"#).unwrap(), [text("a"), text("b")]);
        assert_eq!(parse("[1,2]").unwrap(), [Prompt::Ids(vec![1, 2])]);
        assert_eq!(parse("[[1],[2,3]]").unwrap(), [Prompt::Ids(vec![1]), Prompt::Ids(vec![2, 3])]);
        assert_eq!(parse("[99999999999]").unwrap(), [Prompt::Ids(vec![u32::MAX])]);
    }

    #[test]
    fn too_many() {
        let list = |n: usize| parse(&format!("[[]{}]", ",[]".repeat(n - 1)));
        assert_eq!(list(MAX_CHOICES).unwrap().len(), MAX_CHOICES);
        assert!(list(MAX_CHOICES + 1).unwrap_err().to_string().contains("1024"));
    }

    #[test]
    fn malformed() {
        for json in
            ["[1,\"a\"]", "[[1],2]", "[-1]", "[1.5]", "[[1,null]]", "{}", "5", "null", "[[[1]]]", "[true]"]
        {
            assert!(parse(json).is_err(), "{json}");
        }
    }
}
