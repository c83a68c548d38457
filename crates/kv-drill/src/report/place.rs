//! Where labels go, so that none covers another. All in pixels of the narrowest chart.

/// How wide the narrowest chart is that the page draws; a narrower window scrolls.
pub(super) const PLOT_PX: f64 = 600.0;

/// How wide a character of a label is: labels are set in a monospaced face of 11 px, which takes 0.6 of that.
const CHAR_PX: f64 = 6.8;

/// The least room between two labels.
const GAP_PX: f64 = 8.0;

/// Lanes that get a row each. With more, lanes share rows.
const ROWS_EACH_MAX: usize = 10;

/// How wide a label of so many characters is.
pub(super) fn label_px(chars: usize) -> f64 {
    chars as f64 * CHAR_PX
}

/// How many characters a label takes; those beyond ASCII may be twice as wide as others.
pub(super) fn chars_of(label: &str) -> usize {
    label.chars().map(|c| if c.is_ascii() { 1 } else { 2 }).sum()
}

/// What a label or a bar covers from left to right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Extent {
    /// Its left edge.
    pub(super) left: f64,
    /// Its right edge.
    pub(super) right: f64,
}

impl Extent {
    /// What holds both.
    fn with(self, other: Self) -> Self {
        Self { left: self.left.min(other.left), right: self.right.max(other.right) }
    }
}

/// How a label hangs on its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    /// It begins there.
    Start,
    /// It has its middle there.
    Middle,
    /// It ends there.
    End,
}

/// A label at a place: it begins there if it fits, else it ends there.
pub(super) fn anchored(at: f64, width: f64) -> Extent {
    if anchor(at, width) == Anchor::End {
        Extent { left: at - width, right: at }
    } else {
        Extent { left: at, right: at + width }
    }
}

/// How [`anchored`] decides.
pub(super) fn anchor(at: f64, width: f64) -> Anchor {
    if at + width <= PLOT_PX || at < width { Anchor::Start } else { Anchor::End }
}

/// A label in the middle of its place, or, at an edge, beginning or ending there.
pub(super) fn centred(at: f64, width: f64) -> (Extent, Anchor) {
    let half = width / 2.0;
    if at < half {
        (Extent { left: at, right: at + width }, Anchor::Start)
    } else if at + half > PLOT_PX {
        (Extent { left: at - width, right: at }, Anchor::End)
    } else {
        (Extent { left: at - half, right: at + half }, Anchor::Middle)
    }
}

/// A bar that wants a place.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    /// Bars of one name may stand in one row, and then the label need not be repeated.
    pub(super) name: String,
    /// What it covers.
    pub(super) extent: Extent,
    /// How wide its label is.
    pub(super) label_px: f64,
}

/// Where a bar went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Placed {
    /// Its row, from 0.
    pub(super) row: usize,
    /// What its label covers and how it hangs there; absent if there is no room, for the same label stands left of it.
    pub(super) label: Option<(Extent, Anchor)>,
}

/// A row that is being filled.
struct Row {
    name: String,
    bars_end: f64,
    labels_end: f64,
}

/// Puts bars, sorted by their left edge, into rows, from the left. Up to ten names get rows of their own.
pub(super) fn rows(bars: &[Bar]) -> Vec<Placed> {
    let names: std::collections::BTreeSet<&str> = bars.iter().map(|bar| bar.name.as_str()).collect();
    let shared = names.len() > ROWS_EACH_MAX;
    let mut rows: Vec<Row> = Vec::new();
    bars.iter().map(|bar| place(bar, &mut rows, shared)).collect()
}

/// The place of the next bar.
fn place(bar: &Bar, rows: &mut Vec<Row>, shared: bool) -> Placed {
    let (label, hangs) = label_of(bar);
    let whole = label.with(bar.extent);
    for (i, row) in rows.iter_mut().enumerate() {
        if row.name == bar.name && row.bars_end <= bar.extent.left {
            let fits = row.labels_end + GAP_PX <= label.left;
            row.bars_end = bar.extent.right;
            if fits {
                row.labels_end = label.right;
            }
            return Placed { row: i, label: fits.then_some((label, hangs)) };
        }
    }
    let free = |row: &Row| row.bars_end.max(row.labels_end) + GAP_PX <= whole.left;
    let i = rows.iter().position(|row| shared && free(row)).unwrap_or(rows.len());
    let filled = Row { name: bar.name.clone(), bars_end: bar.extent.right, labels_end: label.right };
    match rows.get_mut(i) {
        Some(row) => *row = filled,
        None => rows.push(filled),
    }
    Placed { row: i, label: Some((label, hangs)) }
}

/// A label begins where its bar begins if it fits there, else ends where its bar ends; one too long for both begins at the left edge.
fn label_of(bar: &Bar) -> (Extent, Anchor) {
    if bar.extent.left + bar.label_px > PLOT_PX {
        let right = bar.extent.right.max(bar.label_px).min(PLOT_PX);
        (Extent { left: right - bar.label_px, right }, Anchor::End)
    } else {
        (anchored(bar.extent.left, bar.label_px), Anchor::Start)
    }
}

/// Numbers whose marks stand too close for a label each.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cluster {
    /// Where the first of them stands.
    pub(super) at: f64,
    /// Their numbers, in the order of time.
    pub(super) numbers: Vec<u32>,
}

impl Cluster {
    /// One number, few numbers, or the first and how many more.
    pub(super) fn label(&self) -> String {
        let mut numbers = self.numbers.clone();
        numbers.dedup();
        match numbers.as_slice() {
            [] => String::new(),
            [one] => one.to_string(),
            [first, rest @ ..]
                if numbers.windows(2).all(|pair| matches!(pair, [a, b] if a.checked_add(1) == Some(*b))) =>
            {
                format!("{first}-{}", rest.last().unwrap_or(first))
            }
            [first, second] => format!("{first},{second}"),
            [first, rest @ ..] => format!("{first}+{}", rest.len()),
        }
    }

    /// What the label covers.
    pub(super) fn extent(&self) -> Extent {
        anchored(self.at, self.width())
    }

    /// How the label hangs on the mark.
    pub(super) fn anchor(&self) -> Anchor {
        anchor(self.at, self.width())
    }

    fn width(&self) -> f64 {
        label_px(self.label().len()) + GAP_PX
    }
}

/// Gathers marks, sorted by place, until no label covers another.
pub(super) fn clusters(marks: &[(f64, u32)]) -> Vec<Cluster> {
    let mut clusters: Vec<Cluster> = Vec::new();
    for (at, number) in marks {
        clusters.push(Cluster { at: *at, numbers: vec![*number] });
        while let [.., before, last] = clusters.as_slice()
            && before.extent().right > last.extent().left
        {
            let numbers = last.numbers.clone();
            clusters.pop();
            if let Some(before) = clusters.last_mut() {
                before.numbers.extend(numbers);
            }
        }
    }
    clusters
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look drawn at random and are the same each time.
    fn draw(seed: &mut u64, below: f64) -> f64 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*seed >> 40) as f64 / (1_u64 << 24) as f64 * below
    }

    fn made(faults: usize, seed: u64) -> Vec<Bar> {
        let mut seed = seed;
        let mut bars: Vec<Bar> = (0..faults)
            .map(|i| {
                let left = draw(&mut seed, PLOT_PX);
                let right = (left + 2.0 + draw(&mut seed, 200.0)).min(PLOT_PX);
                let name = if seed.is_multiple_of(3) { "again".to_owned() } else { format!("rule-{i}") };
                Bar { name, extent: Extent { left, right }, label_px: label_px(6) + draw(&mut seed, 380.0) }
            })
            .collect();
        bars.sort_by(|a, b| a.extent.left.total_cmp(&b.extent.left));
        bars
    }

    fn disjoint(mut extents: Vec<Extent>) {
        extents.sort_by(|a, b| a.left.total_cmp(&b.left));
        for pair in extents.windows(2) {
            assert!(pair[0].right <= pair[1].left, "{pair:?}");
        }
        assert!(
            extents.iter().all(|extent| extent.left >= 0.0 && extent.right <= PLOT_PX + 1e-9),
            "{extents:?}"
        );
    }

    #[test]
    fn no_label_and_no_bar_covers_another_with_1_to_40_faults() {
        for faults in 1..=40 {
            for seed in 0..25 {
                let bars = made(faults, seed);
                let placed = rows(&bars);
                for row in 0..=placed.iter().map(|p| p.row).max().unwrap() {
                    let here: Vec<_> = bars.iter().zip(&placed).filter(|(_, p)| p.row == row).collect();
                    disjoint(here.iter().map(|(bar, _)| bar.extent).collect());
                    disjoint(here.iter().filter_map(|(_, p)| Some(p.label?.0)).collect());
                    assert!(here.iter().any(|(_, p)| p.label.is_some()), "a row without a label");
                }
            }
        }
    }

    #[test]
    fn ten_names_have_rows_of_their_own_and_more_share_them() {
        let bars = |n: u32| -> Vec<Bar> {
            (0..n)
                .map(|i| Bar {
                    name: format!("r{i}"),
                    extent: Extent { left: f64::from(i) * 50.0, right: f64::from(i) * 50.0 + 4.0 },
                    label_px: 30.0,
                })
                .collect()
        };
        let last = |n| rows(&bars(n)).iter().map(|p| p.row).max();
        assert_eq!(last(10), Some(9));
        assert_eq!(last(11), Some(0));
    }

    #[test]
    fn a_fault_that_comes_again_keeps_its_row_and_repeats_no_label_without_room() {
        let bar = |left: f64| Bar {
            name: "flap".into(),
            extent: Extent { left, right: left + 5.0 },
            label_px: 60.0,
        };
        let placed = rows(&[bar(0.0), bar(10.0), bar(20.0), bar(100.0)]);
        assert!(placed.iter().all(|p| p.row == 0));
        assert_eq!(placed.iter().map(|p| p.label.is_some()).collect::<Vec<_>>(), [true, false, false, true]);
    }

    #[test]
    fn a_label_near_the_right_edge_ends_with_its_bar() {
        let placed =
            rows(&[Bar { name: "a".into(), extent: Extent { left: 580.0, right: 590.0 }, label_px: 100.0 }]);
        assert_eq!(placed[0].label, Some((Extent { left: 490.0, right: 590.0 }, Anchor::End)));
    }

    #[test]
    fn step_labels_are_thinned_until_none_covers_another() {
        for steps in 1..=80_u32 {
            for seed in 0..25 {
                let mut seed = seed;
                let mut marks: Vec<(f64, u32)> =
                    (1..=steps).map(|number| (draw(&mut seed, PLOT_PX), number)).collect();
                marks.sort_by(|a, b| a.0.total_cmp(&b.0));
                let clusters = clusters(&marks);
                disjoint(clusters.iter().map(Cluster::extent).collect());
                assert_eq!(clusters.iter().map(|c| c.numbers.len()).sum::<usize>(), marks.len());
            }
        }
    }

    #[test]
    fn a_cluster_says_what_it_holds() {
        let label = |numbers: &[u32]| Cluster { at: 0.0, numbers: numbers.to_vec() }.label();
        assert_eq!(
            [label(&[3]), label(&[3, 3]), label(&[3, 4, 5]), label(&[3, 5]), label(&[5, 3, 9])],
            ["3", "3", "3-5", "3,5", "5+2"]
        );
    }
}
