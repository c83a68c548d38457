//! The report of a run: one HTML file that needs nothing else, from a [`Record`] alone.
//!
//! # How it works
//!
//! Each section is a function from the record to HTML. Charts are SVG whose horizontal positions are percentages, so that a chart is
//! as wide as the page while its letters keep their size. What must not overlap is laid out in pixels for the narrowest chart
//! (`place.rs`): a wider one only moves labels apart. A little JavaScript shows values under the pointer and zooms; without it
//! every value that matters stands in a table or a label.
//!
//! # What it does not do
//!
//! It decides nothing: the verdict, the expectations and the times are the record's. It invents no number: what is absent is a dash
//! with a word why. It opens no file and no connection, nor does the page.

mod buckets;
mod evidence;
mod expectations;
mod faults;
mod leaders;
mod links;
mod load;
mod place;
mod replicas;
mod scale;
mod steps;
mod svg;
mod text;
mod timeline;
mod verdict;

use crate::record::Record;

/// How it looks, on a screen by day and by night and on paper.
const STYLE: &str = include_str!("report/style.css");

/// Patterns: of times without a leader, and of operations of which nobody knows, which so differ from failed ones without colour too.
const PATTERNS: &str = "<svg width=\"0\" height=\"0\" style=\"position:absolute\" aria-hidden=\"true\"><defs>\
    <pattern id=\"hatch\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\">\
    <rect class=\"hatch-ground\" width=\"6\" height=\"6\"/><line class=\"hatch\" x1=\"3\" x2=\"3\" y1=\"0\" y2=\"6\"/></pattern>\
    <pattern id=\"doubt\" width=\"5\" height=\"5\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(-45)\">\
    <rect class=\"doubt-ground\" width=\"5\" height=\"5\"/><line class=\"doubt\" x1=\"2.5\" x2=\"2.5\" y1=\"0\" y2=\"5\"/></pattern></defs></svg>\n";

/// What happens under the pointer.
const SCRIPT: &str = include_str!("report/script.js");

/// The sections, in the order of the page.
const SECTIONS: &[fn(&Record) -> String] = &[
    verdict::section,
    expectations::section,
    timeline::section,
    links::section,
    steps::section,
    evidence::counterexample,
    replicas::section,
    evidence::runbook,
];

/// The whole report, as the text of an HTML file.
pub fn html(record: &Record) -> String {
    let body: String = SECTIONS.iter().map(|section| section(record)).collect();
    let title = text::escape(&format!("{}: {}", record.drill.name, record.verdict));
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{PATTERNS}<main>\n{body}</main>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    )
}
