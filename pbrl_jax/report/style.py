"""Style sheet and script of the report: light and dark after the reader's system, phone and desktop, no network."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f7f7f4; --surface: #ffffff; --ink: #14140f; --soft: #5c5b55; --rule: #e2e1da;
  --before: #96948a; --after: #2a6fd0; --good: #0a6b2b; --bad: #b3261e; --code: #f0efe9;
  --c0: #2a6fd0; --c1: #c2410c; --c2: #0f7b5f; --c3: #8a3ab9;
  --c4: #a16207; --c5: #be185d; --c6: #4d5b6b; --c7: #0e7490;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #11110f; --surface: #1b1b18; --ink: #f4f3ee; --soft: #b3b1a7; --rule: #33322d;
    --before: #75736a; --after: #5a9bf0; --good: #6fcf8b; --bad: #f08a80; --code: #26251f;
    --c0: #5a9bf0; --c1: #f28b54; --c2: #4cc39c; --c3: #c08af0;
    --c4: #d9b13f; --c5: #f27eb0; --c6: #a3b1c2; --c7: #4fc3dc;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans Thai", "Noto Sans Bengali",
    "Noto Sans Telugu", "Noto Sans Arabic", "Noto Sans CJK SC", sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: clamp(1.5rem, 1.1rem + 2vw, 2.25rem); line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 1.25rem; margin: 44px 0 4px; }
h3 { font-size: 1rem; margin: 0; font-weight: 600; }
h3 .soft { font-weight: 400; }
.head h3 { min-width: 0; overflow-wrap: anywhere; }
p { margin: 6px 0 14px; max-width: 74ch; }
.lead { font-size: 1.1rem; }
.soft, .note { color: var(--soft); }
.note { font-size: 0.9rem; }
.grid { display: grid; gap: 14px; margin: 14px 0; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(min(100%, 150px), 1fr)); }
.cards { grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); }
.card {
  background: var(--surface); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px; min-width: 0;
}
.tile b {
  display: block; font-size: clamp(1.2rem, 0.95rem + 1vw, 1.7rem); line-height: 1.25; font-weight: 650;
  font-variant-numeric: tabular-nums;
}
.charts .card { display: flex; flex-direction: column; }
.charts svg { margin-top: auto; }
.head { display: flex; justify-content: space-between; align-items: baseline; gap: 10px; margin-bottom: 8px; }
.gain { font-variant-numeric: tabular-nums; font-weight: 600; white-space: nowrap; }
.up { color: var(--good); } .down { color: var(--bad); }
svg { display: block; width: 100%; height: auto; max-width: 460px; overflow: visible; }
svg text { font-size: 12px; fill: var(--ink); }
svg text.soft { fill: var(--soft); } svg text.end { text-anchor: end; } svg text.mid { text-anchor: middle; }
svg text.value { font-weight: 600; }
svg rect.before { fill: var(--before); } svg rect.after { fill: var(--after); }
svg path { fill: none; }
svg path.grid { stroke: var(--rule); stroke-width: 1; }
svg path.whisker { stroke: var(--ink); stroke-width: 1.4; }
svg path.english { stroke: var(--soft); stroke-width: 1.3; stroke-dasharray: 3 3; }
svg path.raw { stroke: var(--after); stroke-width: 1; opacity: 0.3; }
svg path.line { stroke: var(--line, var(--after)); stroke-width: 2; stroke-linejoin: round; }
svg circle.dot { fill: var(--line, var(--after)); }
.c0 { --line: var(--c0); } .c1 { --line: var(--c1); } .c2 { --line: var(--c2); } .c3 { --line: var(--c3); }
.c4 { --line: var(--c4); } .c5 { --line: var(--c5); } .c6 { --line: var(--c6); } .c7 { --line: var(--c7); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 0.85rem; margin: 0 0 8px; }
.key::before {
  content: ""; display: inline-block; width: 10px; height: 10px; border-radius: 50%; background: var(--line);
  margin-right: 6px;
}
td .down { font-weight: 600; }
section > h3 { margin: 18px 0 0; }
.spark { display: grid; grid-template-columns: 1fr 110px 4.4em; gap: 10px; align-items: center; font-size: 0.85rem; }
.spark + .spark { margin-top: 2px; }
.spark span:last-child { font-variant-numeric: tabular-nums; text-align: right; }
.card .spark:first-of-type { border-top: 1px solid var(--rule); margin-top: 10px; padding-top: 8px; }
.wide { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; font-size: 0.95rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 6px 14px; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; }
td { white-space: nowrap; }
td:first-child { white-space: normal; }
td code { display: inline-block; max-width: 36vw; white-space: normal; overflow-wrap: anywhere; }
table.config td { white-space: normal; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr.total td { font-weight: 650; }
table.config { width: 100%; } table.config td { text-align: left; overflow-wrap: anywhere; }
table.config td:first-child { width: 45%; color: var(--soft); }
td .bar { display: inline-block; height: 10px; border-radius: 2px; background: var(--after); vertical-align: middle; }
td:has(> .bar) { width: 200px; text-align: left; }
details { border-bottom: 1px solid var(--rule); padding: 8px 0; }
summary { cursor: pointer; font-weight: 600; }
pre {
  background: var(--code); border-radius: 8px; padding: 12px 14px; font-size: 0.86rem; margin: 10px 0;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
pre .soft { color: var(--soft); }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Noto Sans Mono", monospace; }
.filters { display: flex; flex-wrap: wrap; align-items: center; gap: 8px 16px; margin: 12px 0; font-size: 0.95rem; }
.filters label { display: flex; gap: 6px; align-items: center; color: var(--soft); }
select, input {
  font: inherit; color: var(--ink); background: var(--surface); border: 1px solid var(--rule); border-radius: 6px;
  padding: 5px 8px; max-width: 60vw;
}
input[type="number"] { width: 5.5em; }
:focus-visible { outline: 2px solid var(--after); outline-offset: 2px; }
#samples .card { margin: 12px 0; }
.card dl { display: grid; grid-template-columns: 8em 1fr; gap: 6px 14px; margin: 8px 0 0; }
.card dt { color: var(--soft); font-size: 0.88rem; padding-top: 2px; }
.card dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; }
.chips { display: flex; flex-wrap: wrap; gap: 6px; }
.chip { background: var(--code); border-radius: 99px; padding: 1px 10px; font-size: 0.86rem; white-space: nowrap; }
[hidden] { display: none !important; }
@media (max-width: 560px) {
  main { padding: 22px 14px 48px; }
  .card dl { grid-template-columns: 1fr; gap: 0; }
  .card dt { padding-top: 8px; }
  td:has(> .bar), table:has(.bar) th:last-child { display: none; }
  table { font-size: 0.9rem; }
  th, td { padding: 6px; }
  td:first-child:has(.note) { min-width: 8em; }
}
@media print { .filters { display: none; } .card { break-inside: avoid; } }
"""

SCRIPT = """
(function () {
  var list = document.getElementById("samples");
  if (!list) return;
  var cards = Array.prototype.slice.call(list.children);
  function at(id) { return document.getElementById(id); }
  var language = at("by-language"), step = at("by-step"), run = at("by-run"), order = at("by-order");
  var low = at("reward-from"), high = at("reward-to"), count = at("sample-count");
  function number(card) { return card.dataset.reward === "" ? -Infinity : Number(card.dataset.reward); }
  function fits(card) {
    var value = card.dataset, reward = number(card);
    if (value.reward === "" && (low.value !== "" || high.value !== "")) return false;
    return (!language.value || value.language === language.value) && (!step.value || value.step === step.value) &&
           (!run || !run.value || value.run === run.value) &&
           (low.value === "" || reward >= Number(low.value)) && (high.value === "" || reward <= Number(high.value));
  }
  function update() {
    var shown = 0, sign = { low: 1, high: -1 }[order.value] || 0;
    cards.forEach(function (card) {
      card.hidden = !fits(card);
      shown += card.hidden ? 0 : 1;
    });
    var sorted = cards.slice();
    if (sign) sorted.sort(function (a, b) { return sign * (number(a) - number(b)) || 0; });
    sorted.forEach(function (card) { list.appendChild(card); });
    count.textContent = shown + " of " + cards.length + " shown";
  }
  [language, step, run, order, low, high].forEach(function (control) {
    if (control) control.addEventListener("input", update);
  });
  at("filters").hidden = false;
  step.value = step.options[step.options.length - 1].value;
  if (step.options.length === 2 && language.options.length > 2) language.value = language.options[1].value;
  update();
})();
"""
