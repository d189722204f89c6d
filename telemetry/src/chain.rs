//! An error with all its causes on one line, for logs and for people. Pure.
//!
//! Our errors keep their source out of their text; this puts the two together where one is told.

use std::error::Error;
use std::fmt;

/// Displays an error and, after colons, what caused it, to the root.
///
/// Some libraries repeat their source in their own text; a cause that the text before it already
/// ends with is left out.
pub struct Chain<'a>(pub &'a (dyn Error + 'a));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if !text.is_empty() && !said.ends_with(&text) {
                write!(f, ": {text}")?;
                said = text;
            }
            source = cause.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::Chain;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Said {
        text: &'static str,
        source: Option<Box<Said>>,
    }

    fn error(texts: &[&'static str]) -> Said {
        let mut texts = texts.iter().rev();
        let root = Said { text: texts.next().expect("a root cause"), source: None };
        texts.fold(root, |source, text| Said { text, source: Some(Box::new(source)) })
    }

    #[test]
    fn every_cause_is_told_once() {
        let check = |texts: &[&'static str], expect: &str| assert_eq!(Chain(&error(texts)).to_string(), expect);
        check(&["cannot join"], "cannot join");
        check(&["cannot join", "cannot reach 10.0.0.1", "refused"], "cannot join: cannot reach 10.0.0.1: refused");
        check(&["cannot join: refused", "refused"], "cannot join: refused");
        check(&["cannot join", "", "refused"], "cannot join: refused");
    }
}
