//! The fourth section: which messages faults were about, link by link.

use std::collections::{BTreeMap, BTreeSet};

use super::text::{absent, count, escape, section as wrap, short_count};
use crate::record::{Counts, Record};

/// An end of a link; nodes come first, in the order of their numbers, and clients last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Node(u64),
    Other(String),
}

impl End {
    fn parse(text: &str) -> Self {
        let id = text.strip_prefix('n').and_then(|digits| digits.parse().ok());
        id.map_or_else(|| Self::Other(text.to_owned()), Self::Node)
    }

    fn name(&self) -> String {
        match self {
            Self::Node(id) => super::text::node(*id),
            Self::Other(name) => name.clone(),
        }
    }
}

/// The most ends of a matrix that all nodes of the drill get a row in; with more, only those that faults touched.
const ENDS_MAX: u64 = 16;

/// The counts of all faults, by link.
fn sums(record: &Record) -> BTreeMap<(End, End), Counts> {
    let mut sums: BTreeMap<(End, End), Counts> = BTreeMap::new();
    for (link, counts) in record.faults.iter().flat_map(|fault| &fault.links) {
        let (from, to) = link.split_once("->").unwrap_or((link, "?"));
        let sum = sums.entry((End::parse(from), End::parse(to))).or_default();
        sum.matched = sum.matched.saturating_add(counts.matched);
        sum.acted = sum.acted.saturating_add(counts.acted);
    }
    sums
}

/// The matrix.
pub(super) fn section(record: &Record) -> String {
    let sums = sums(record);
    if sums.is_empty() {
        let why = if record.faults.is_empty() {
            "no fault was in force"
        } else {
            "no rule counted messages of a link"
        };
        return wrap("links", "Links", &format!("<p>{}</p>\n", absent(why)));
    }
    let mut ends: BTreeSet<End> = sums.keys().flat_map(|(from, to)| [from.clone(), to.clone()]).collect();
    if record.drill.nodes <= ENDS_MAX {
        ends.extend((1..=record.drill.nodes).map(End::Node));
    }
    let most = sums.values().map(|sum| sum.acted).max().unwrap_or(0);
    let head: String = ends.iter().map(|to| format!("<th>{}</th>", escape(&to.name()))).collect();
    let rows: String = ends
        .iter()
        .map(|from| {
            let cells: String = ends.iter().map(|to| cell(from, to, &sums, most)).collect();
            format!("<tr><th>{}</th>{cells}</tr>\n", escape(&from.name()))
        })
        .collect();
    let body = format!(
        "<p class=\"note\">Messages from a row to a column, summed over all faults: those that a rule matched, and below those that it acted on. \
         The darker, the more it acted on; the darkest is {}. A dash: no rule was about the link.</p>\n\
         <div class=\"scroll\"><table class=\"matrix\"><thead><tr><th class=\"corner\">from \\ to</th>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n",
        count(most)
    );
    wrap("links", "Links", &body)
}

/// A link's cell.
fn cell(from: &End, to: &End, sums: &BTreeMap<(End, End), Counts>, most: u64) -> String {
    let Some(sum) = sums.get(&(from.clone(), to.clone())) else {
        let (class, text) = if from == to { ("self", "") } else { ("none", "&ndash;") };
        return format!("<td class=\"{class}\">{text}</td>");
    };
    let title =
        format!("{}->{}: {} matched, {} acted", from.name(), to.name(), count(sum.matched), count(sum.acted));
    format!(
        "<td title=\"{}\" style=\"--heat:{}%\">{}<br><b>{}</b></td>",
        escape(&title),
        heat(sum.acted, most),
        short_count(sum.matched),
        short_count(sum.acted)
    )
}

/// How dark a cell is, in per cent: by the root, so that few beside many are still seen.
fn heat(acted: u64, most: u64) -> String {
    if acted == 0 {
        return "0".to_owned();
    }
    let part = (acted as f64 / most.max(1) as f64).sqrt();
    format!("{:.0}", 6.0 + 44.0 * part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Fault;

    #[test]
    fn counts_are_summed_by_direction_and_clients_come_last() {
        let links = |pairs: &[(&str, u64, u64)]| {
            pairs
                .iter()
                .map(|(link, matched, acted)| {
                    ((*link).to_owned(), Counts { matched: *matched, acted: *acted })
                })
                .collect()
        };
        let fault = |pairs| Fault { links: links(pairs), ..Default::default() };
        let mut record = Record {
            faults: vec![
                fault(&[("n1->n2", 5, 4), ("clients->n1", 1, 0)]),
                fault(&[("n1->n2", 20_000, 1), ("n10->n2", 1, 1)]),
            ],
            ..Default::default()
        };
        record.drill.nodes = 3;
        let html = section(&record);
        assert!(html.contains("n1-&gt;n2: 20,005 matched, 5 acted"), "{html}");
        assert!(html.contains("<th>n1</th><th>n2</th><th>n3</th><th>n10</th><th>clients</th>"), "{html}");
        assert!(html.contains("--heat:50%") && html.contains("--heat:0%"));
    }

    #[test]
    fn without_counts_it_says_why() {
        let mut record = Record::default();
        assert!(section(&record).contains("no fault was in force"));
        record.faults.push(Fault::default());
        assert!(section(&record).contains("no rule counted"));
    }
}
