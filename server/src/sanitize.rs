//! Keeps the server's file names out of what clients read.

/// Top folders whose paths are never shown.
const HIDDEN: &[&str] = &["home", "usr", "opt", "var", "tmp", "root", "lib", "mnt", "srv"];

/// `message` with `<path>` in place of paths below the usual top folders, and of any absolute path to a file that has an
/// extension; as vLLM does it.
pub(crate) fn sanitize(message: &str) -> String {
    let mut clean = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(start) = rest.find('/') {
        let (before, path) = rest.split_at(start);
        clean.push_str(before);
        let end = path.find(ends_a_path).unwrap_or(path.len());
        let (path, after) = path.split_at(end);
        // A slash inside a word (`org/model`, `https://host`) starts no absolute path.
        let absolute = !before.ends_with(|c: char| c.is_alphanumeric() || "._-:~".contains(c));
        clean.push_str(if absolute && is_hidden(path) { "<path>" } else { path });
        rest = after;
    }
    clean.push_str(rest);
    clean.trim().to_owned()
}

fn ends_a_path(c: char) -> bool {
    c.is_whitespace() || "'\"`,;:()[]{}<>|".contains(c)
}

fn is_hidden(path: &str) -> bool {
    let mut parts = path[1..].split('/');
    let top = parts.next().unwrap_or_default();
    let below = parts.clone().next().is_some();
    let file = parts.next_back().and_then(|name| name.rsplit_once('.'));
    let has_extension = file.is_some_and(|(stem, extension)| {
        !stem.is_empty() && !extension.is_empty() && extension.chars().all(char::is_alphanumeric)
    });
    (HIDDEN.contains(&top) && below) || has_extension
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_hidden_and_names_are_not() {
        for (message, shown) in [
            ("No adapter found for /not/an/adapter", "No adapter found for /not/an/adapter"),
            ("found for /tmp/x/y, sorry", "found for <path>, sorry"),
            ("'/data/a/config.json': bad", "'<path>': bad"),
            (
                "The model `org/model.v1` does not exist.",
                "The model `org/model.v1` does not exist.",
            ),
            ("see https://host/home/x", "see https://host/home/x"),
            ("(/home/me) and /var/log", "(<path>) and <path>"),
            ("  a / b  ", "a / b"),
            ("/", "/"),
        ] {
            assert_eq!(sanitize(message), shown);
        }
    }
}
