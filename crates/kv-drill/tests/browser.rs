//! Opens reports in a real browser, headless. Skips, and says so, only where none is installed.

#[path = "../examples/report/made.rs"]
mod made;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What each page must have.
const SECTIONS: &[&str] =
    &["verdict", "expectations", "timeline", "links", "steps", "counterexample", "replicas", "runbook"];

/// Notes mistakes of the page's own script. It stands before that.
const WATCH: &str =
    "<script>window.addEventListener('error', e => { document.body.dataset.error = e.message; });</script>";

/// Measures what is on the page, and drags over the chart. It stands after the page's own script.
const MEASURE: &str = r#"<script>
const rect = e => e.getBoundingClientRect(), out = document.body.dataset, name = e => e.tagName + '.' + (e.getAttribute('class') || '') + ':' + e.textContent.slice(0, 40).replace(/[\s<>"]+/g, ' ');
const scrolls = e => e.closest('.scroll, .chart, pre.example') !== null;
const wide = [...document.querySelectorAll('main *')].filter(e => !(e instanceof SVGElement) && !scrolls(e.parentNode) && rect(e).right > innerWidth + 0.5);
out.overflow = document.documentElement.scrollWidth > innerWidth ? 'page' : wide.map(name).join(' ') || 'none';
out.scrolled = [...document.querySelectorAll('.scroll, .chart')].filter(e => e.scrollWidth > e.clientWidth + 1).map(name).join(' ') || 'none';
const overlaps = [], clipped = [];
for (const svg of document.querySelectorAll('.view > svg, .gutter > svg')) {
  const texts = [...svg.querySelectorAll('text')], frame = rect(svg);
  for (const [i, a] of texts.entries()) {
    const p = rect(a);
    if (svg.parentNode.className === 'view' && (p.left < frame.left - 1.5 || p.right > frame.right + 1.5)) clipped.push(name(a));
    for (const b of texts.slice(i + 1)) {
      const q = rect(b), x = Math.min(p.right, q.right) - Math.max(p.left, q.left), y = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (x > 0.5 && y > 3) overlaps.push(name(a) + ' / ' + name(b));
    }
  }
}
out.overlaps = overlaps.join(' ') || 'none';
out.clipped = clipped.join(' ') || 'none';
const chart = document.querySelector('.chart'), view = document.querySelector('.view');
if (view) {
  const box = rect(view), at = part => ({ bubbles: true, button: 0, clientX: box.left + part * box.width, clientY: box.top + 5 });
  for (const [kind, part] of [['pointermove', 0.2], ['pointerdown', 0.25], ['pointermove', 0.5], ['pointerup', 0.75]]) view.dispatchEvent(new PointerEvent(kind, at(part)));
  out.zoom = chart.style.getPropertyValue('--zoom');
}
</script>"#;

/// A browser, if there is one.
fn chromium() -> Option<PathBuf> {
    let named = ["chromium", "chromium-browser", "google-chrome"].map(PathBuf::from);
    let cached = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/ms-playwright"));
    let cached = cached.and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let cached = cached.map(|entry| entry.path().join("chrome-linux/chrome"));
    let works =
        |path: &PathBuf| Command::new(path).arg("--version").output().is_ok_and(|out| out.status.success());
    named.into_iter().chain(cached).find(works)
}

/// Runs the browser on a page, for a minute at most.
fn open(browser: &Path, page: &Path, arguments: &[String]) -> Output {
    let profile = page.with_extension("profile");
    let output = Command::new("timeout")
        .arg("60")
        .arg(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(arguments)
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("every Linux has timeout");
    assert!(output.status.success(), "{}: {}", page.display(), String::from_utf8_lossy(&output.stderr));
    output
}

/// What [`MEASURE`] wrote.
fn attribute<'a>(dom: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = dom.split_once("<body")?;
    let (body, _) = rest.split_once('>')?;
    body.split_once(&format!(" data-{name}=\""))?.1.split_once('"').map(|(value, _)| value)
}

#[test]
fn reports_read_well_in_a_browser() {
    let Some(browser) = chromium() else {
        writeln!(std::io::stderr(), "SKIPPED: no chromium, chromium-browser or google-chrome is installed")
            .unwrap();
        return;
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("reports");
    std::fs::create_dir_all(&folder).unwrap();
    for (name, record) in made::all() {
        let html = kv_drill::report::html(&record);
        assert!(html.len() < 1_500_000, "{name} takes {} bytes", html.len());
        let page = folder.join(format!("{name}.html"));
        std::fs::write(&page, &html).unwrap();
        let picture = folder.join(format!("{name}.png"));
        open(
            &browser,
            &page,
            &[format!("--screenshot={}", picture.display()), "--window-size=1280,2400".to_owned()],
        );
        assert!(std::fs::read(&picture).unwrap().starts_with(b"\x89PNG"));

        let measured = folder.join(format!("{name}-measured.html"));
        let html = html
            .replace("<main>", &format!("{WATCH}<main>"))
            .replace("</body>", &format!("{MEASURE}</body>"));
        std::fs::write(&measured, html).unwrap();
        for width in [1280, 800] {
            let arguments = ["--dump-dom".to_owned(), format!("--window-size={width},2400")];
            let output = open(&browser, &measured, &arguments);
            let dom = String::from_utf8(output.stdout).unwrap();
            check(&dom, &format!("{name} at {width}"), width);
        }
    }
}

/// What is asserted of a page.
fn check(dom: &str, what: &str, width: u32) {
    for section in SECTIONS {
        assert!(dom.contains(&format!(" id=\"{section}\"")), "{what}: no section {section}");
    }
    assert_eq!(attribute(dom, "error"), None, "{what}");
    for found in ["overflow", "overlaps", "clipped"] {
        assert_eq!(attribute(dom, found), Some("none"), "{what}: {found}");
    }
    if width >= 1280 {
        assert_eq!(attribute(dom, "scrolled"), Some("none"), "{what}");
    }
    if let Some(zoom) = attribute(dom, "zoom") {
        assert_eq!(zoom, "2", "{what}: dragged over half of the chart");
    }
}
