"""How a report looks: light and dark, from a phone's width to a printed page. Colours keep a contrast of 4.5 to 1."""

from __future__ import annotations

STYLE = """
:root { --bg: #ffffff; --fg: #1b1f24; --soft: #57606a; --line: #d0d7de; --band: #f3f5f7; --before: #8c959f;
  --after: #0b66b7; --good: #1a6b33; --bad: #a4262c; --c0: #0b66b7; --c1: #b34700; --c2: #00704f; --c3: #96487a;
  --c4: #8a5f00; --c5: #1f6f9c; }
@media (prefers-color-scheme: dark) { :root { --bg: #12161b; --fg: #e6eaef; --soft: #a2adb9; --line: #3a434d;
  --band: #1b2128; --before: #7d8894; --after: #6cb6ff; --good: #6fd08c; --bad: #ff8f8a; --c0: #6cb6ff; --c1: #ff9e64;
  --c2: #5ed3a5; --c3: #e59ac6; --c4: #e6c15c; --c5: #8fd3f4; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--fg); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 0; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
p { margin: .4rem 0; max-width: 60rem; }
.verdict { font-size: 1.15rem; border-left: .3rem solid var(--good); padding-left: .8rem; }
.verdict.missed { border-color: var(--bad); }
.soft, caption, figcaption { color: var(--soft); }
.wide { overflow-x: auto; }
.wide:focus-visible, svg [tabindex]:focus-visible { outline: .2rem solid var(--after); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .93rem; }
caption { text-align: left; padding: .2rem 0; }
th, td { padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 500; overflow-wrap: anywhere; min-width: 6rem; max-width: 16rem; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
table.layers td:nth-child(2) { min-width: 11rem; }
figure { margin: .6rem 0; }
svg { display: block; max-width: 100%; height: auto; font: 12px system-ui, sans-serif; }
.wide svg { min-width: 40rem; }
svg text { fill: var(--fg); } svg .soft { fill: var(--soft); }
svg .grid { stroke: var(--line); } svg .before { fill: var(--before); } svg .after { fill: var(--after); }
svg .curve { fill: none; stroke-width: 2; } svg .point { stroke: var(--bg); stroke-width: 1.5; cursor: pointer; }
svg .ring { fill: none; stroke: var(--fg); stroke-width: 2; }
#told { min-height: 3rem; padding: .5rem .8rem; background: var(--band); overflow-wrap: anywhere; }
.inputs { display: flex; flex-wrap: wrap; gap: .8rem; padding: 0; list-style: none; }
.inputs li { width: 8.2rem; background: var(--band); padding: .5rem; font-size: .85rem; overflow-wrap: anywhere; }
.inputs img { width: 100%; image-rendering: pixelated; display: block; margin-bottom: .3rem; background: var(--line); }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 0 2rem; }
pre { background: var(--band); padding: .6rem .8rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
footer { color: var(--soft); font-size: .85rem; padding: 2rem 0; }
@media (max-width: 40rem) { body { font-size: 15px; } .two { grid-template-columns: 1fr; }
  .inputs li { width: calc((100% - 1.2rem) / 3); } .inputs { gap: .6rem; } }
@media print { body { font-size: 10pt; } .wide { overflow: visible; } h2 { break-after: avoid; }
  tr, figure, .inputs li { break-inside: avoid; } #told { display: none; } .wide svg { min-width: 0; } }
"""

# What a point says is shown below the picture too: a phone has no pointer to hover with.
SCRIPT = """
(() => {
  const told = document.getElementById('told');
  if (!told) return;
  const show = event => {
    const point = event.target.closest('[data-plan]');
    if (point) told.textContent = point.dataset.plan;
  };
  for (const name of ['pointerover', 'focusin', 'click']) document.addEventListener(name, show);
})();
"""
