//! What our own pages have in common: their frame and their style.
//!
//! Without scripts, and with colors that follow the reader's choice of light or dark.

use crate::web::files::File;

/// The style of the pages. The policy for scripts and styles names its digest.
pub const STYLE: &str = "\
    :root{color-scheme:light dark;--text:#1d232a;--soft:#5a6570;--line:#d9dfe5;--back:#fff;--code:#f3f5f8;--link:#0b5cad}\
    @media(prefers-color-scheme:dark){:root{--text:#e4e9ee;--soft:#9aa7b4;--line:#333d47;--back:#14191e;--code:#1e252c;--link:#7ab8ff}}\
    body{font:1rem/1.55 system-ui,sans-serif;max-width:46rem;margin:0 auto;padding:2.5rem 1.25rem;color:var(--text);background:var(--back)}\
    h1{font-size:1.9rem;line-height:1.2;margin:0 0 .75rem}h2{font-size:1.15rem;margin:2rem 0 .5rem}p{margin:.5rem 0}\
    a{color:var(--link)}.lead{font-size:1.2rem;color:var(--soft);margin-bottom:1rem}\
    code{font:.92em ui-monospace,monospace;background:var(--code);padding:.1em .3em;border-radius:.25rem;overflow-wrap:anywhere}\
    pre{background:var(--code);border:1px solid var(--line);border-radius:.4rem;padding:.9rem 1rem;overflow-x:auto}\
    pre code{background:none;padding:0;overflow-wrap:normal}\
    table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.35rem 1rem .35rem 0;vertical-align:top;\
    border-bottom:1px solid var(--line)}\
    .ways{list-style:none;padding:0}.ways li{display:flex;flex-wrap:wrap;gap:.1rem 1rem;padding:.5rem 0;border-bottom:1px solid var(--line)}\
    .ways a{min-width:11.5rem;font-weight:600}.ways span{color:var(--soft)}";

/// A page with a title, which is its heading, too, and `content` in HTML.
pub fn page(title: &str, content: &str) -> File {
    let name = if title == "Oncepay" { title.to_owned() } else { format!("{title} · Oncepay") };
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{name}</title>\
         <style>{STYLE}</style>\
         <main><h1>{title}</h1>{content}</main></html>"
    );
    File::new("text/html; charset=utf-8", html)
}

/// A text as HTML shows it.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
