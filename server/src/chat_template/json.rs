//! `tojson` as transformers has it: `json.dumps(value, ensure_ascii=False)`, with nothing escaped for HTML.

use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use std::io::{self, Write};

pub(super) fn tojson(value: Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent = kwargs.get::<Option<u8>>("indent")?;
    let sort = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    // Accepted: text is written as it is either way.
    kwargs.get::<Option<bool>>("ensure_ascii")?;
    let separators = kwargs.get::<Option<Serde<(String, String)>>>("separators")?;
    kwargs.assert_all_used()?;
    let mut json = serde_json::to_value(&value).map_err(bad_value)?;
    if sort {
        json.sort_all_objects();
    }
    let (item, key) = match separators {
        Some(Serde((item, key))) => (item, key),
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let mut text = Vec::new();
    let python = Python { indent: indent.map(usize::from), item, key, depth: 0, empty: true };
    json.serialize(&mut Serializer::with_formatter(&mut text, python)).map_err(bad_value)?;
    Ok(String::from_utf8(text).expect("JSON is UTF-8"))
}

fn bad_value(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::BadSerialization, format!("tojson: {error}"))
}

/// Writes as Python's `json.dumps` does.
struct Python {
    indent: Option<usize>,
    item: String,
    key: String,
    depth: usize,
    /// Nothing stands in the innermost list or object so far.
    empty: bool,
}

impl Python {
    fn open<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.empty = true;
        writer.write_all(bracket)
    }

    fn next<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.item.as_bytes())?;
        }
        self.line(writer)
    }

    fn close<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !self.empty {
            self.line(writer)?;
        }
        self.empty = false;
        writer.write_all(bracket)
    }

    fn line<W: ?Sized + Write>(&self, writer: &mut W) -> io::Result<()> {
        match self.indent {
            Some(width) => write!(writer, "\n{:1$}", "", width * self.depth),
            None => Ok(()),
        }
    }
}

impl Formatter for Python {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.next(w, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.empty = false;
        Ok(())
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.next(w, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.empty = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use minijinja::Environment;
    use minijinja::value::Serde;

    fn render(template: &str) -> String {
        let mut environment = Environment::new();
        environment.add_filter("tojson", super::tojson);
        let value =
            serde_json::json!({"b": ["<é>", 1, 1.5, null], "a": {}, "c": [], "d": {"x": true}});
        environment.render_str(template, Serde(serde_json::json!({"v": value}))).unwrap()
    }

    #[test]
    fn as_python_writes_it() {
        let plain = r#"{"b": ["<é>", 1, 1.5, null], "a": {}, "c": [], "d": {"x": true}}"#;
        assert_eq!(render("{{ v|tojson }}"), plain);
        assert_eq!(render("{{ v|tojson(ensure_ascii=False) }}"), plain);
        let indented = "{\n  \"b\": [\n    \"<é>\",\n    1,\n    1.5,\n    null\n  ],\n  \"a\": {},\n  \
                        \"c\": [],\n  \"d\": {\n    \"x\": true\n  }\n}";
        assert_eq!(render("{{ v|tojson(indent=2) }}"), indented);
        assert_eq!(render("{{ v.d|tojson(separators=(',', ':')) }}"), r#"{"x":true}"#);
        assert!(render("{{ v|tojson(sort_keys=true) }}").starts_with(r#"{"a": {}, "b""#));
    }
}
