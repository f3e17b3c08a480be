"use strict";
// The live page. It asks for a picture when it has drawn the one before, so a slow or hidden page costs nothing.

const $ = (id) => document.getElementById(id);
const view = $("view"), canvas = $("picture"), divider = $("divider");
const pen = canvas.getContext("2d", { alpha: false });
const KEPT = 900, SHOWN = 300;              // samples kept, and drawn: seconds
const store = {                              // absent in some private modes
  get(key) { try { return localStorage.getItem(key); } catch { return null; } },
  set(key, value) { try { localStorage.setItem(key, value); } catch { /* not kept */ } },
};
const page = { share: 0.5, boxes: false, hold: false, pair: null, drawn: 0, samples: [], told: "", socket: null, wait: 500, polling: false };

// ---- pictures

function connect() {
  const socket = new WebSocket(location.origin.replace(/^http/, "ws") + "/frames");
  socket.binaryType = "arraybuffer";
  page.socket = socket;
  socket.onopen = () => { page.wait = 500; ask(); ask(); };
  let before = Promise.resolve();            // one after the other: decoding must not swap two pictures
  socket.onmessage = (event) => { before = before.then(() => take(socket, event.data)); };
  socket.onclose = () => {
    if (page.socket !== socket) return;
    page.socket = null;
    say("bad", "not connected");
    setTimeout(connect, page.wait);
    page.wait = Math.min(page.wait * 2, 8000);
  };
}

function ask() {
  if (page.socket && page.socket.readyState === WebSocket.OPEN) page.socket.send("next");
}

async function take(socket, data) {
  const length = new DataView(data).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  const cut = 4 + length + head.lengths[0];
  const bitmap = (from, to) => createImageBitmap(new Blob([data.slice(from, to)], { type: "image/jpeg" }));
  try {
    const restored = await bitmap(4 + length, cut);
    const original = head.lengths[1] ? await bitmap(cut, data.byteLength) : restored;
    show({ head, restored, original });
  } catch (error) {
    say("bad", "a picture could not be read");
  }
  // Not drawn while the page is hidden: then nothing is asked for either, until it is seen again.
  requestAnimationFrame(() => { if (page.socket === socket && !page.hold) ask(); });
}

function show(pair) {
  const old = page.pair;
  if (page.hold && old) { release(pair); return; }
  page.pair = pair;
  page.drawn += 1;
  if (old) release(old);
  view.dataset.frame = pair.head.index;
  $("veil").hidden = true;
  draw();
}

function release(pair) {
  pair.restored.close();
  if (pair.original !== pair.restored) pair.original.close();
}

function draw() {
  const pair = page.pair;
  if (!pair) return;
  const { width, height } = pair.restored;
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
    document.documentElement.style.setProperty("--ratio", width / height);
  }
  const at = Math.round(width * page.share);
  pen.drawImage(pair.original, 0, 0, width, height);
  if (at < width) pen.drawImage(pair.restored, at, 0, width - at, height, at, 0, width - at, height);
  if (page.boxes) drawBoxes(pair.head, width / pair.head.size[0]);
}

function drawBoxes(head, scale) {
  const shown = canvas.width / (canvas.clientWidth || canvas.width);   // pixels of the picture in one of the page
  pen.lineWidth = 1.5 * shown;
  pen.font = `600 ${Math.round(13 * shown)}px system-ui, sans-serif`;
  pen.textBaseline = "bottom";
  for (const [id, x0, y0, x1, y1] of head.tracks) {
    const hue = ((id || 0) * 67 + 150) % 360;
    pen.strokeStyle = pen.fillStyle = `hsl(${hue} 75% 68%)`;
    pen.beginPath();
    if (pen.roundRect) pen.roundRect(x0 * scale, y0 * scale, (x1 - x0) * scale, (y1 - y0) * scale, 6 * shown);
    else pen.rect(x0 * scale, y0 * scale, (x1 - x0) * scale, (y1 - y0) * scale);
    pen.stroke();
    const above = y0 * scale - 3 * shown;                  // inside the box where there is no room above it
    if (id) pen.fillText(`#${id}`, x0 * scale + 4 * shown, above > 18 * shown ? above : y0 * scale + 20 * shown);
  }
}

// ---- divider

function moveTo(share) {
  page.share = Math.min(1, Math.max(0, share));
  const percent = Math.round(page.share * 100);
  divider.style.left = `${page.share * 100}%`;
  divider.setAttribute("aria-valuenow", percent);
  divider.setAttribute("aria-valuetext", `${percent} % original`);
  view.querySelector(".before").classList.toggle("gone", page.share < 0.12);
  view.querySelector(".after").classList.toggle("gone", page.share > 0.88);
  draw();
}

function follow(event) {
  const box = view.getBoundingClientRect();
  moveTo((event.clientX - box.left) / box.width);
}

function watchDivider() {
  let held = null;
  view.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    held = event.pointerId;
    view.setPointerCapture(held);
    follow(event);
  });
  view.addEventListener("pointermove", (event) => { if (event.pointerId === held) follow(event); });
  for (const end of ["pointerup", "pointercancel"]) view.addEventListener(end, () => { held = null; });
  divider.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 0.1 : 0.02;
    const to = {
      ArrowLeft: page.share - step, ArrowDown: page.share - step, ArrowRight: page.share + step,
      ArrowUp: page.share + step, PageDown: page.share - 0.1, PageUp: page.share + 0.1, Home: 0, End: 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    moveTo(to);
  });
}

// ---- numbers

async function poll() {
  if (page.polling) return;
  page.polling = true;
  try {
    const answer = await fetch("/stats.json", { signal: AbortSignal.timeout ? AbortSignal.timeout(4000) : undefined });
    if (answer.status === 401) { location.reload(); return; }
    const told = await answer.json();
    await remember(told.sample);
    render(told);
  } catch {
    say("bad", "not connected");
    if (!page.hold) veil("The stream has ended, or cannot be reached. This page goes on when it is back.");
  } finally {
    page.polling = false;
  }
}

/** Add a sample; after a gap (a sleeping tab, another run) fetch them all. */
async function remember(sample) {
  if (!sample) return;
  const last = page.samples[page.samples.length - 1];
  if (last && last.n === sample.n) return;
  if (last && last.n + 1 === sample.n) page.samples.push(sample);
  else page.samples = await (await fetch("/history.json")).json();
  page.samples.splice(0, page.samples.length - KEPT);
}

function render({ stats, health, version, memory_bytes: memory, viewers, events }) {
  const connected = page.socket && page.socket.readyState === WebSocket.OPEN;
  if (!health.ok) say("bad", "stalled"); else if (!connected) say("wait", "connecting"); else say("ok", page.hold ? "held" : "live");
  if (!health.ok) veil(health.reason); else if (page.pair) $("veil").hidden = true;
  $("route").textContent = stats.source;
  $("route").title = stats.source;
  document.title = `${stats.fps_out.toFixed(0)} fps · ufr-edge`;
  tiles(stats);
  for (const step of $("ladder").children) {
    if (step.dataset.step === stats.step) step.setAttribute("aria-current", "step"); else step.removeAttribute("aria-current");
  }
  stages(stats);
  facts(stats, version, memory, viewers);
  listEvents(events);
  plots(stats);
}

function tiles(stats) {
  const age = stats.glass || stats.age;
  number("fps", stats.fps_out.toFixed(1));
  $("age-name").textContent = `${stats.glass ? "glass to glass" : "latency"} p50 / p95`;
  const slow = age && age.p95_ms >= 1000, told = (ms) => (slow ? (ms / 1000).toFixed(1) : ms.toFixed(0));
  number("age", age ? `${told(age.p50_ms)} / ${told(age.p95_ms)}` : "–", age ? (slow ? "s" : "ms") : "");
  const over = age && stats.deadline_ms !== null && age.p95_ms > stats.deadline_ms;
  $("age").className = over ? "warn" : "";
  number("faces", stats.tracks.length);
  number("dropped", count(stats.dropped_total), share(stats.dropped_total, stats.frames_in));
  number("late", count(stats.late), share(stats.late, stats.frames_out));
}

function number(id, value, unit = "") {
  const place = $(id), small = document.createElement("small");
  small.textContent = unit;
  place.replaceChildren(String(value), ...(unit ? [small] : []));
}

const count = (n) => (n < 100000 ? String(n) : `${(n / 1000).toFixed(0)}k`);
const share = (part, all) => (part && all ? `${((100 * part) / all).toFixed(part / all < 0.1 ? 1 : 0)} %` : "");

function stages(stats) {
  const threads = ["track thread", "restore thread", "paste thread", "sink"];
  const order = ["track thread", "detect", "track", "restore thread", "warp", "restore", "stabilise", "paste thread", "paste", "sink"];
  const times = stats.stages.filter((s) => s.count && order.includes(s.name)).sort((a, b) => order.indexOf(a.name) - order.indexOf(b.name));
  const most = Math.max(1, ...times.map((s) => s.p95_ms));
  $("stages").tBodies[0].replaceChildren(...times.map((stage) => {
    const row = document.createElement("tr");
    if (!threads.includes(stage.name)) row.className = "part";
    const bar = document.createElement("i"), track = document.createElement("span");
    bar.style.width = `${(100 * stage.p50_ms) / most}%`;
    track.className = "track";
    track.append(bar);
    row.append(cell("th", stage.name), cell("td", track, "bar"), cell("td", stage.p50_ms.toFixed(1)), cell("td", stage.p95_ms.toFixed(1)));
    return row;
  }));
}

function cell(kind, content, name = "") {
  const made = document.createElement(kind);
  if (name) made.className = name;
  made.append(content);
  return made;
}

function facts(stats, version, memory, viewers) {
  const rows = [
    ["engine", stats.engine], ["bundle version", stats.bundle_version], ["device", stats.device], ["detector", stats.detector],
    ["picture", `${stats.width}×${stats.height}`],
    ["frames", `${stats.frames_in} in, ${stats.frames_out} out`], ["running", duration(stats.seconds)],
    ["memory", memory ? `${(memory / 1048576).toFixed(0)} MiB` : ""], ["failed", stats.failed || ""],
    ["reconnects", stats.reconnects || ""], ...watched(stats), ["pages open", viewers], ["version", version],
  ];
  $("facts").replaceChildren(...rows.filter(([, v]) => v !== "" && v !== undefined && v !== null).flatMap(([k, v]) => [cell("dt", k), cell("dd", v)]));
}

/** Drift and the recorder, where the stream has them. */
function watched(stats) {
  const watch = stats.watch || {}, limit = watch.drift && watch.drift.limit;
  const few = watch.drift ? `too few faces yet (${watch.drift.faces})` : "";
  const drift = typeof stats.drift === "number" ? stats.drift.toFixed(1) + (typeof limit === "number" ? ` of ${+limit.toFixed(1)}` : "") : few;
  const kept = watch.recorded && typeof watch.recorded.kept === "number" ? `${watch.recorded.kept} faces${watch.recording ? "" : " (stopped)"}` : "";
  return [["drift", drift && stats.drifted ? mark("b", `${drift}: raised`, "warn") : drift], ["recorded", kept]];
}

function mark(kind, text, name) {
  const made = document.createElement(kind);
  made.className = name;
  made.textContent = text;
  return made;
}

function duration(seconds) {
  const s = Math.floor(seconds), two = (n) => String(n).padStart(2, "0");
  const days = Math.floor(s / 86400);
  return `${days ? `${days} d ` : ""}${two(Math.floor(s / 3600) % 24)}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}`;
}

function listEvents(events) {
  const newest = events.length ? `${events.length}/${events[events.length - 1].at}` : "";
  if (newest === page.told) return;
  page.told = newest;
  const troubled = { failed: "bad", lost: "bad", stuck: "bad", drift: "warn", ladder: "warn", size: "warn", dropped: "warn" };
  $("events").replaceChildren(...events.slice().reverse().map((event) => {
    const row = document.createElement("li");
    row.append(cell("time", new Date(event.at * 1000).toLocaleTimeString([], { hour12: false })), cell("b", event.kind, troubled[event.kind] || ""), cell("span", event.text));
    return row;
  }));
}

function plots(stats) {
  const shown = page.samples.slice(-SHOWN), last = shown[shown.length - 1];
  if (!last) return;
  const column = (name) => shown.map((s) => s[name]);
  Plots.draw($("rate"), [{ values: column("fps_in"), name: "--in" }, { values: column("fps_out"), name: "--out", fill: true }], { least: 10 });
  Plots.draw($("lag"), [{ values: column("most_ms"), name: "--most" }, { values: column("p50_ms"), name: "--out", fill: true }], { least: 20, limit: stats.deadline_ms });
  $("rate-now").textContent = `${last.fps_out.toFixed(1)} of ${last.fps_in.toFixed(1)} /s`;
  $("lag-now").textContent = last.p50_ms === null ? "no frame" : `${last.p50_ms.toFixed(0)} ms`;
  $("rate-span").textContent = shown.length < 120 ? `last ${shown.length} s` : `last ${Math.round(shown.length / 60)} min`;
  $("rate").setAttribute("aria-label", `Frame rate: ${last.fps_out.toFixed(1)} out of ${last.fps_in.toFixed(1)} frames per second`);
  $("lag").setAttribute("aria-label", `Latency: ${$("lag-now").textContent}`);
}

// ---- the rest

function say(state, text) {
  const place = $("state");
  if (place.dataset.state === state && place.lastElementChild.textContent === text) return;
  place.dataset.state = state;
  place.lastElementChild.textContent = text;
}

function veil(text) {
  $("veil").textContent = text;
  $("veil").hidden = false;
}

function toggle(id, name, after) {
  page[name] = !page[name];
  $(id).setAttribute("aria-pressed", page[name]);
  if (after) after();
}

function watchControls() {
  const dark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: light)").matches ? "light" : "dark")) === "dark";
  const act = {
    b: () => toggle("boxes", "boxes", draw),
    " ": () => toggle("hold", "hold", () => { if (!page.hold) { ask(); ask(); } }),
    s: () => $("snap").click(),
    f: () => (document.fullscreenElement ? document.exitFullscreen() : view.requestFullscreen && view.requestFullscreen()),
    t: () => { const to = dark() ? "light" : "dark"; document.documentElement.dataset.theme = to; store.set("theme", to); poll(); },
  };
  $("boxes").onclick = act.b;
  $("hold").onclick = act[" "];
  $("full").onclick = act.f;
  $("theme").onclick = act.t;
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("button, a, input, [role=log]");
    if (event.ctrlKey || event.metaKey || event.altKey || !act[event.key] || (event.key === " " && typing)) return;
    event.preventDefault();
    act[event.key]();
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
}

const theme = store.get("theme");
if (theme) document.documentElement.dataset.theme = theme;
watchDivider();
watchControls();
moveTo(0.5);
connect();
poll();
setInterval(() => { if (!document.hidden) poll(); }, 1000);
