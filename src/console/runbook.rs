//! The runbook of the repository, as pages link to it.

use std::sync::LazyLock;

use actix_web::{HttpRequest, HttpResponse, get};
use maud::html;
use pulldown_cmark::{Options, Parser};

use super::page::{self, Page};
use super::view;

const TEXT: &str = include_str!("../../ops/runbook.md");

/// Shows the runbook, for everybody with a session: it names no secrets.
#[get("/console/runbook")]
pub async fn show(request: HttpRequest) -> HttpResponse {
    // Each section with the name that alerts have for it.
    static SECTIONS: LazyLock<Vec<(&str, String)>> = LazyLock::new(|| {
        let sections = TEXT.split("\n## ").skip(1);
        let named = sections.filter_map(|section| section.split_once('\n'));
        named.map(|(name, text)| (name.trim(), html_of(text))).collect()
    });
    view::show(&request, async |_| {
        let content = html! {
            p.soft { "What to do when an alert fires, or a page here sent you." }
            nav aria-label="Alerts" { ul.columns { @for (name, _) in &*SECTIONS { li { a href={ "#" (name) } { (name) } } } } }
            @for (name, text) in &*SECTIONS {
                section.prose id=(name) { h2 { (name) } (page::ours(text.clone())) }
            }
        };
        Ok(Page::new("Runbook", content))
    })
    .await
}

fn html_of(markdown: &str) -> String {
    let mut html = String::new();
    pulldown_cmark::html::push_html(&mut html, Parser::new_ext(markdown, Options::ENABLE_TABLES));
    // With a keyboard, what is too wide is scrolled.
    html.replace("<pre>", "<pre tabindex=\"0\">")
}

/// The path of a section.
pub fn section(alert: &str) -> String {
    debug_assert!(TEXT.contains(&format!("\n## {alert}\n")), "the runbook has no section {alert}");
    format!("/console/runbook#{alert}")
}
