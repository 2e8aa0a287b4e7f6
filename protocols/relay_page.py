"""The relay's page: what GET / of its HTTP port shows to a browser. Data in, bytes out.

One page shows one box (`/?box=NAME`; none: `queue`): who is in a hurry drops a file, picks one up,
and is done. It holds everything it needs, so its policy allows nothing from elsewhere, and in it
only this style and this script, by their hashes. It asks of the HTTP wire
    GET  /?box=BOX              the page of another box, also one that is still empty
    POST /BOX                   files of a form, field `file`; 303 back to /?box=BOX
    GET  /BOX/next              the oldest parcel, taken out of the box (204: the page stays)
    GET  /BOX/ID                a copy of one
    POST /BOX/ID                action=requeue: a parked one waits again; 303 back to /?box=BOX
and with the script, which is a convenience and never needed
    /tus/                       uploads with progress that go on after a cut (POST, PATCH, HEAD)
    DELETE /BOX/ID              removes one
    GET  /?box=BOX              every few seconds: the list is drawn by the server alone
Names and boxes are other people's text: escaped, their control and bidi characters replaced.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from html import escape
from typing import Any
from unicodedata import category
from urllib.parse import quote

MOST = 500  # parcels that are listed
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # scripts and emoji need them
_STATES = {
    "waiting": "waiting",
    "claimed": "being picked up",
    "parked": "parked: it could not be delivered",
}

STYLE = """
:root { color-scheme: light dark; --paper: #f6f5f1; --card: #fff; --ink: #1d2125; --dim: #5c6670;
  --line: #dcdad2; --accent: #a3341f; --on: #fff; --wash: #a3341f12; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --card: #1f2226; --ink: #e8e6e1;
  --dim: #9aa4ad; --line: #343a40; --accent: #f08a70; --on: #1d1411; --wash: #f08a7018; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 52rem; padding: 2rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
header { display: flex; flex-wrap: wrap; gap: .75rem 2rem; align-items: center;
  justify-content: space-between; }
h1 { margin: 0; font-size: 1.1rem; font-weight: 600; }
h1 small { font: inherit; font-weight: 400; color: var(--dim); }
h2 { margin: 0; font-size: 1.6rem; line-height: 1.2; overflow-wrap: anywhere; }
p { margin: .35rem 0 0; color: var(--dim); }
a { color: var(--accent); text-underline-offset: .15em; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
button, input { font: inherit; color: inherit; }
button { padding: .5rem 1rem; border: 1px solid var(--line); border-radius: .5rem;
  background: var(--card); cursor: pointer; }
button:hover { border-color: var(--accent); }
button.main { border-color: var(--accent); background: var(--accent); color: var(--on);
  font-weight: 600; }
input[name=box] { width: 9rem; padding: .5rem .75rem; border: 1px solid var(--line);
  border-radius: .5rem; background: var(--card); }
.row { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; }
nav ul { display: flex; flex-wrap: wrap; gap: .4rem; margin: 1.25rem 0 0; padding: 0;
  list-style: none; }
nav a { display: block; padding: .2rem .8rem; border: 1px solid var(--line); border-radius: 1rem;
  background: var(--card); color: inherit; text-decoration: none; }
nav a[aria-current] { border-color: var(--accent); color: var(--accent); font-weight: 600; }
nav small { font-weight: 400; color: var(--dim); }
main { margin-top: 1.25rem; padding: 1.75rem; border: 1px solid var(--line); border-radius: .9rem;
  background: var(--card); }
.top { display: flex; flex-wrap: wrap; gap: 1rem; align-items: center;
  justify-content: space-between; }
#drop { margin: 1.5rem 0; padding: 1.5rem; border: 2px dashed var(--line); border-radius: .75rem; }
#drop.over { border-color: var(--accent); background: var(--wash); }
#drop label { display: block; margin-bottom: .6rem; font-weight: 600; }
#drop input { flex: 1 1 14rem; min-width: 0; }
#sent { margin: 0; padding: 0; list-style: none; }
#sent li { display: grid; grid-template-columns: 1fr auto; gap: 0 1rem; align-items: center;
  margin-bottom: 1rem; }
#sent span { overflow-wrap: anywhere; }
#sent p { grid-column: 1 / -1; margin: 0; font-size: .9rem; }
#sent .wrong p { color: var(--accent); }
progress { grid-column: 1 / -1; width: 100%; height: .5rem; accent-color: var(--accent); }
table { width: 100%; border-collapse: collapse; }
th { padding: 0 .75rem .4rem 0; font-size: .85rem; font-weight: 400; color: var(--dim);
  text-align: left; }
tbody td { border-top: 1px solid var(--line); }
td { padding: .6rem .75rem .6rem 0; vertical-align: top; }
td:first-child { width: 50%; overflow-wrap: anywhere; }
td small { display: block; color: var(--dim); }
.size { text-align: right; white-space: nowrap; }
td:last-child { padding-right: 0; text-align: right; }
td button { padding: .15rem .6rem; font-size: .9rem; white-space: nowrap; }
td form { margin-bottom: .35rem; }
.when { white-space: nowrap; }
input::file-selector-button { margin-right: .75rem; padding: .4rem .9rem; font: inherit;
  color: inherit; border: 1px solid var(--line); border-radius: .5rem; background: var(--paper);
  cursor: pointer; }
.none { padding: 1rem 0; text-align: center; }
[hidden] { display: none; }
@media (max-width: 34rem) { main { padding: 1.1rem; } .when { display: none; }
  td button { white-space: normal; } }
"""

SCRIPT = """
'use strict';
const drop = document.getElementById('drop');
const sent = document.getElementById('sent');
const picked = document.getElementById('file');
const pause = ms => new Promise(done => setTimeout(done, ms));
const base64 = text => btoa(String.fromCharCode(...new TextEncoder().encode(text)));

function said(answer) {
  try { return JSON.parse(answer.responseText).detail; } catch { return ''; }
}

const which = it => it.textContent + it.getAttribute('href') + it.getAttribute('aria-label');

function dress() {
  for (const button of document.querySelectorAll('[data-remove]')) button.hidden = false;
  for (const time of document.querySelectorAll('time')) {
    time.textContent = new Date(time.dateTime).toLocaleString(
      [], {dateStyle: 'medium', timeStyle: 'short'});
  }
}

async function refresh() {
  try {
    const answer = await fetch(location.href, {cache: 'no-store'});
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), 'text/html');
    for (const id of ['list', 'boxes']) {
      const old = document.getElementById(id), now = fresh.getElementById(id);
      if (seen[id] === now.innerHTML) continue;
      seen[id] = now.innerHTML;
      const held = old.contains(document.activeElement) && which(document.activeElement);
      old.replaceWith(now);
      dress();
      if (held) [...now.querySelectorAll('a, button')].find(it => which(it) === held)?.focus();
    }
  } catch { /* the daemon is away: the next turn looks again */ }
}

function ask(method, url, headers, body, upload) {
  return new Promise((done, failed) => {
    const call = new XMLHttpRequest();
    call.open(method, url);
    for (const [name, value] of Object.entries({'Tus-Resumable': '1.0.0', ...headers})) {
      call.setRequestHeader(name, value);
    }
    call.onload = () => call.status < 300 ? done(call) : failed(call);
    call.onerror = call.onabort = () => failed(call);
    if (upload) {
      upload.call = call;
      call.upload.onprogress = event => upload.show(event.loaded);
    }
    call.send(body);
  });
}

async function send(file) {
  const line = document.createElement('li'), bar = document.createElement('progress');
  const name = document.createElement('span'), note = document.createElement('p');
  const stop = document.createElement('button');
  name.textContent = file.name;
  stop.textContent = 'Cancel';
  stop.type = 'button';
  bar.max = file.size || 1;
  bar.value = 0;
  bar.setAttribute('aria-label', 'Sending ' + file.name);
  note.setAttribute('role', 'status');
  line.append(name, stop, bar, note);
  sent.append(line);
  let offset = 0, url = null, cancelled = false, began = Date.now(), from = 0;
  const upload = {show(count) {
    bar.value = offset + count;
    const rate = (offset + count - from) / ((Date.now() - began) / 1000 || 1);
    const left = Math.ceil((file.size - offset - count) / rate);
    note.textContent = Math.floor(100 * (offset + count) / bar.max) + ' %, ' +
      (rate / 1048576).toFixed(1) + ' MiB/s' + (isFinite(left) ? ', ' + left + ' s left' : '');
  }};
  stop.onclick = () => {
    cancelled = true;
    if (upload.call) upload.call.abort();
  };
  try {
    const made = await ask('POST', '/tus/', {
      'Upload-Length': file.size,
      'Upload-Metadata': `box ${base64(drop.dataset.box)},filename ${base64(file.name)}`,
    });
    url = made.getResponseHeader('Location');
    while (offset < file.size && !cancelled) {
      try {
        const answer = await ask('PATCH', url, {
          'Upload-Offset': offset,
          'Content-Type': 'application/offset+octet-stream',
        }, file.slice(offset), upload);
        offset = Number(answer.getResponseHeader('Upload-Offset'));
      } catch (cut) {
        if (cancelled) break;
        if (cut.status && cut.status < 500 && cut.status !== 409) throw cut;
        note.textContent = 'The connection broke; it goes on as soon as the server is there.';
        await pause(cut.status === 409 ? 100 : 1000);
        try {
          const there = await ask('HEAD', url, {});
          from = offset = Number(there.getResponseHeader('Upload-Offset'));
          began = Date.now();
        } catch (still) { if (still.status === 404 || still.status === 410) throw still; }
      }
    }
    if (cancelled) {
      note.textContent = 'Cancelled.';
      await ask('DELETE', url, {}).catch(() => {});
    } else {
      bar.value = bar.max;
      note.textContent = 'Kept: it is on disk.';
    }
  } catch (refusal) {
    line.className = 'wrong';
    note.textContent = said(refusal) ||
      (refusal.status ? `Refused with status ${refusal.status}.` : 'The server cannot be reached.');
  }
  stop.remove();
  refresh();
}

async function sendAll(files) {
  for (const file of files) await send(file);
}

drop.addEventListener('submit', event => {
  event.preventDefault();
  sendAll([...picked.files]);
  drop.reset();
});
drop.addEventListener('dragover', event => {
  event.preventDefault();
  drop.classList.add('over');
});
drop.addEventListener('dragleave', () => drop.classList.remove('over'));
drop.addEventListener('drop', event => {
  event.preventDefault();
  drop.classList.remove('over');
  sendAll([...event.dataTransfer.files]);
});
document.addEventListener('click', async event => {
  const url = event.target.dataset.remove;
  if (!url || !confirm(event.target.getAttribute('aria-label') + '?')) return;
  await fetch(url, {method: 'DELETE'});
  refresh();
});
document.addEventListener('submit', event => {
  if (event.target.id === 'pick') setTimeout(refresh, 1000);
});

const seen = {};
for (const id of ['list', 'boxes']) seen[id] = document.getElementById(id).innerHTML;
dress();
addEventListener('focus', refresh);
setInterval(() => document.hidden || refresh(), 2000);
"""


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


CSP = "; ".join(
    (
        "default-src 'none'",
        f"script-src {_hash(SCRIPT)}",
        f"style-src {_hash(STYLE)}",
        "img-src data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": CSP,
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # not no-referrer: with it a browser's forms say `Origin: null`, as a stranger's would
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def page(boxes: Sequence[Mapping[str, Any]], listing: Mapping[str, Any]) -> bytes:
    """The page of one box.

    boxes: all there are, each {"box", "parcels": how many, "bytes"}; listing: the one that is
    shown, {"box", "parcels": [...]}: both as the HTTP wire lists them in JSON.
    """
    box = str(listing["box"])
    parcels = listing["parcels"]
    shown, at = _text(box), f"/{_quoted(box)}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{shown} - Roundhouse relay</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>Roundhouse <small>relay</small></h1>
<form class="row" action="/" method="get">
<label for="box">Another box</label>
<input id="box" name="box" required pattern="[a-z0-9\\-]{{1,64}}" maxlength="64"
 title="1 to 64 of a-z, 0-9 and -" autocapitalize="none" autocomplete="off">
<button>Open</button>
</form>
</header>
<nav id="boxes" aria-label="Boxes">{_boxes(boxes, box)}</nav>
<main>
<div class="top">
<div>
<h2>{shown}</h2>
<p>Whoever can open this page can pick up what is in the box.</p>
</div>
<form id="pick" action="{at}/next" method="get"><button class="main">Pick up the oldest</button>
</form>
</div>
<form id="drop" action="{at}" method="post" enctype="multipart/form-data" data-box="{shown}">
<label for="file">Drop files here, or choose them</label>
<div class="row"><input id="file" type="file" name="file" multiple required>
<button class="main">Send</button></div>
</form>
<ul id="sent" aria-label="Sent from here"></ul>
<section id="list" aria-label="In the box">{_list(parcels, at)}</section>
</main>
<script>{SCRIPT}</script>
</body>
</html>
""".encode(errors="replace")


def _boxes(boxes: Sequence[Mapping[str, Any]], here: str) -> str:
    counts = {here: 0} | {str(box["box"]): box["parcels"] for box in boxes}
    if len(counts) < 2:
        return ""
    links = []
    for box, count in sorted(counts.items()):
        current = ' aria-current="page"' if box == here else ""
        where = f"/?box={_quoted(box)}"
        links.append(
            f'<li><a href="{where}"{current}>{_text(box)} <small>{count:,}</small></a></li>'
        )
    return f"<ul>{''.join(links)}</ul>"


def _list(parcels: Sequence[Mapping[str, Any]], at: str) -> str:
    if not parcels:
        return '<p class="none">Nothing is here yet.</p>'
    rows = "\n".join(_row(parcel, at) for parcel in parcels[:MOST])
    more = f"<p>and {len(parcels) - MOST:,} more</p>" if len(parcels) > MOST else ""
    return (
        '<table><thead><tr><th scope="col">Name: downloads a copy</th>'
        '<th scope="col" class="size">Size</th><th scope="col" class="when">Sent</th>'
        f"<td></td></tr></thead>\n<tbody>\n{rows}\n</tbody></table>{more}"
    )


def _row(parcel: Mapping[str, Any], at: str) -> str:
    name, state = _text(parcel["name"]), parcel["state"]
    where = f"{at}/{_quoted(parcel['id'])}"
    if state == "uploading":
        link, size = f"<bdi>{name}</bdi>", _size(parcel.get("received", 0))
        note, act = f"arriving{_share(parcel)}", ""
    else:
        link, size = f'<a href="{where}" download><bdi>{name}</bdi></a>', _size(parcel["size"])
        note = _STATES.get(state, _text(state))
        act = (
            f'<button type="button" data-remove="{where}" aria-label="Remove {name}" hidden>'
            "Remove</button>"
        )
    if parcel.get("expires"):
        note += f"</small><small>to be deleted {_time(parcel['expires'])}"
    if state == "parked":
        act = (
            f'<form action="{where}" method="post"><button name="action" value="requeue"'
            f' aria-label="Hand out {name} again">Hand out again</button></form>{act}'
        )
    return (
        f'<tr><td>{link}<small>{note}</small></td><td class="size">{size}</td>'
        f'<td class="when">{_time(parcel["sent"])}</td><td>{act}</td></tr>'
    )


def _share(parcel: Mapping[str, Any]) -> str:
    """How much of an upload is there, where its length is known."""
    return f", {100 * parcel.get('received', 0) // parcel['size']} %" if parcel["size"] else ""


def _size(count: int) -> str:
    amount, unit = float(count), 0
    while amount >= 1000 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.1f} {_UNITS[unit]}" if unit else f"{count} byte{'' if count == 1 else 's'}"


def _time(at: str | None) -> str:
    """An ISO 8601 time; the script tells it in the reader's own way."""
    if not at:
        return ""
    return f'<time datetime="{_text(at)}">{_text(at[:16].replace("T", " "))} UTC</time>'


def _quoted(text: object) -> str:
    return quote(str(text), safe="", errors="replace")


def _text(text: object) -> str:
    """Harmless in HTML, in an attribute and to the eye: nothing hidden, nothing reversed."""
    return escape("".join("\ufffd" if _unseen(c) else c for c in str(text)))


def _unseen(c: str) -> bool:
    return category(c) in _UNSEEN and c not in _JOINERS
