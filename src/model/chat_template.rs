//! Chat templates, rendered as transformers does.
//!
//! Source: transformers 5.17, `utils/chat_template_utils.py` (`_compile_jinja_template`): a sandboxed Jinja
//! environment with `trim_blocks`, `lstrip_blocks`, loop controls, `raise_exception`, `strftime_now` and a `tojson`
//! that does not escape HTML.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value, context};

use super::jinja;
use crate::base::clock;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Text.
    pub content: String,
}

impl ChatMessage {
    /// A message of `role` with `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A chat template that does not compile or cannot render.
#[derive(Debug, thiserror::Error)]
pub enum ChatTemplateError {
    /// The template is not valid Jinja.
    #[error("not a valid Jinja template")]
    Syntax {
        /// Where and why.
        source: Error,
    },
    /// Rendering failed: often the template's own `raise_exception`.
    #[error("cannot render {messages} messages")]
    Render {
        /// Number of messages.
        messages: usize,
        /// Where and why.
        source: Error,
    },
}

/// A compiled chat template with the checkpoint's special tokens.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    tokens: Vec<(String, String)>,
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Compiles `source`; `tokens` are names like `bos_token` with their texts, visible to the template.
    pub fn new(source: String, tokens: Vec<(String, String)>) -> Result<Self, ChatTemplateError> {
        let mut environment = Environment::new();
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()
                .map_err(|source| ChatTemplateError::Syntax { source })?,
        );
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_unknown_method_callback(jinja::unknown_method);
        environment.set_formatter(jinja::format_value);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", |format: &str| strftime(clock::unix_seconds(), format));
        environment.add_filter("tojson", jinja::tojson);
        environment
            .add_template_owned(NAME, source.clone())
            .map_err(|source| ChatTemplateError::Syntax { source })?;
        Ok(Self { environment, source, tokens })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt for `messages`; `add_generation_prompt` opens the assistant's turn.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, ChatTemplateError> {
        let failed = |source| ChatTemplateError::Render { messages: messages.len(), source };
        let turns: Vec<Value> = messages
            .iter()
            .map(|m| context! { role => m.role.as_str(), content => m.content.as_str() })
            .collect();
        let tokens = Value::from_pairs(self.tokens.iter().map(|(name, text)| (name.as_str(), text.as_str())));
        let arguments = context! {
            messages => turns,
            add_generation_prompt => add_generation_prompt,
            tools => (),
            documents => (),
            ..tokens
        };
        let template = self.environment.get_template(NAME).map_err(failed)?;
        template.render(arguments).map_err(failed)
    }
}

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// `datetime.now().strftime(format)` in UTC, for the directives that chat templates use; others stay as written.
fn strftime(unix_seconds: u64, format: &str) -> String {
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
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
    let iso = clock::iso8601(unix_seconds);
    let month = MONTHS[iso[5..7].parse::<usize>().unwrap_or(1).clamp(1, 12) - 1];
    let day = DAYS[(unix_seconds / 86_400 % 7) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        let directive = if c == '%' { chars.next() } else { None };
        match directive {
            None => out.push(c),
            Some('Y') => out.push_str(&iso[0..4]),
            Some('y') => out.push_str(&iso[2..4]),
            Some('m') => out.push_str(&iso[5..7]),
            Some('d') => out.push_str(&iso[8..10]),
            Some('H') => out.push_str(&iso[11..13]),
            Some('M') => out.push_str(&iso[14..16]),
            Some('S') => out.push_str(&iso[17..19]),
            Some('B') => out.push_str(month),
            Some('b') => out.push_str(&month[..3]),
            Some('A') => out.push_str(day),
            Some('a') => out.push_str(&day[..3]),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::failure::chain;

    fn template(source: &str) -> Result<ChatTemplate, ChatTemplateError> {
        ChatTemplate::new(source.to_owned(), vec![("bos_token".to_owned(), "<s>".to_owned())])
    }

    /// Reference: transformers 5.17, `_compile_jinja_template(source).render(…)`.
    #[test]
    fn as_transformers() {
        let source = "{%- set ns = namespace(n=0) -%}\n{% for message in messages %}\n    {% if message.role == 'system' %}{% continue %}{% endif %}\n    {%- set ns.n = ns.n + 1 %}\n{{ bos_token }}[{{ message['role'] | upper }}] {{ message.content.strip() }}\n    {% if ns.n > 2 %}{% break %}{% endif %}\n{% endfor %}\n{{ messages[0] | tojson }} {{ tools is none }} {{ undefined_thing }}{{ messages | length }}\n{% if add_generation_prompt %}\nGO\n{% endif %}\nend";
        let messages = [
            ChatMessage::new("system", "<é> 'q'"),
            ChatMessage::new("user", " hi\n"),
            ChatMessage::new("assistant", "yo"),
            ChatMessage::new("user", "a"),
            ChatMessage::new("user", "never"),
        ];
        assert_eq!(
            template(source).unwrap().render(&messages, true).unwrap(),
            "<s>[USER] hi\n<s>[ASSISTANT] yo\n<s>[USER] a\n{\"role\": \"system\", \"content\": \"<é> 'q'\"} True 5\nGO\nend"
        );
    }

    #[test]
    fn errors_say_why() {
        assert!(chain(&template("{% for %}").err().unwrap()).starts_with("not a valid Jinja template: "));
        let refusing = template("{{ raise_exception('no system role') }}").unwrap();
        assert!(chain(&refusing.render(&[], false).unwrap_err()).contains("no system role"));
        let endless = template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").unwrap();
        assert!(endless.render(&[], false).is_err());
    }

    /// Reference: `date -u -d @1795248930`.
    #[test]
    fn dates() {
        assert_eq!(
            strftime(1_795_248_930, "%d %b %Y %A %B %H:%M:%S %y%m %% %q"),
            "21 Nov 2026 Saturday November 08:15:30 2611 % %q"
        );
    }
}
