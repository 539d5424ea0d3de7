"""How a page looks: light or dark as its reader's screen is, from a phone to a desk."""

STYLE = """
:root{color-scheme:light dark;--ground:#fff;--card:#f6f7f9;--ink:#1c2024;--faint:#5d6670;
--line:#dfe3e8;--bar:#4a6fa5;--bar2:#c2577a;--whisker:#1c2024}
@media (prefers-color-scheme:dark){:root{--ground:#14171a;--card:#1d2125;--ink:#e6e8ea;
--faint:#9aa4ae;--line:#343a41;--bar:#6b93cf;--bar2:#e07a9d;--whisker:#e6e8ea}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1100px;padding:16px;background:var(--ground);color:var(--ink);
font:15px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5em;line-height:1.2;margin:.4em 0 .1em}
h2{font-size:1.15em;margin:2em 0 .3em;padding-top:.6em;border-top:1px solid var(--line)}
h3{font-size:1em;margin:1.4em 0 .4em}h4{font-size:.95em;margin:0 0 .2em}
p{margin:.3em 0 .7em;max-width:75ch}.meta,small,.note{color:var(--faint)}
small{display:block;font-size:.8em}td small{white-space:nowrap}.note{font-size:.9em}
nav a{color:var(--bar);margin-right:1em;white-space:nowrap}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:1em 0}
.tile{background:var(--card);border-radius:8px;padding:10px 14px}
.tile b{display:block;font-size:1.7em;line-height:1.2;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
.figures{width:100%}.figures td,.figures th{padding:4px 10px 4px 0;text-align:left;
vertical-align:top;border-bottom:1px solid var(--line);font-weight:normal;overflow-wrap:normal}
.figures thead th{color:var(--faint);font-size:.85em}
.figures td.wide{width:45%;min-width:90px}
@media (max-width:600px){.figures td,.figures th{padding-right:7px;font-size:.92em}
.figures th[scope=row]{max-width:34vw}}
.narrow{max-width:420px}
.bar{position:relative;display:block;height:14px;margin-top:4px;background:var(--line);
border-radius:3px}
.bar i{position:absolute;left:0;top:0;bottom:0;background:var(--bar);border-radius:3px}
.bar.other i{background:var(--bar2)}.bar.oracle i{background:var(--faint)}
.bar u{position:absolute;top:50%;height:2px;margin-top:-1px;background:var(--whisker)}
.bar u:before,.bar u:after{content:"";position:absolute;top:-4px;height:10px;width:2px;
background:var(--whisker)}.bar u:before{left:0}.bar u:after{right:0}
.clip{background:var(--card);border-radius:8px;padding:12px 14px;margin:0 0 14px}
.score{color:var(--faint);font-weight:normal;white-space:nowrap}
.clip audio{width:100%;max-width:420px;height:36px;margin:.2em 0 .5em}
.strip td,.strip th{padding:2px 4px 2px 0;font-weight:normal;font-size:.8em;color:var(--faint);
text-align:center;overflow-wrap:normal}
.strip th[scope=row]{text-align:right;padding-right:8px;position:sticky;left:0;
background:var(--card)}
.strip img{display:block;width:100%;min-width:110px;height:auto;border-radius:3px}
.key{display:inline-block;margin-right:1em}.key i{display:inline-block;width:.8em;height:.8em;
margin-right:.35em;border:1px solid var(--faint)}
.picture{background:#fff;padding:6px;border-radius:8px}.picture img{display:block}
svg{display:block;width:100%;max-width:var(--width);height:auto}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 14px;margin:.5em 0}
dt{color:var(--faint)}dd{margin:0}
"""
