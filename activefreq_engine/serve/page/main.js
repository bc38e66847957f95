// The page: what is open, what is shown, and which key or button does what.
import { call, download, get, Refused, setToken } from './api.js';
import { Folder } from './folder.js';
import { decode } from './frames.js';
import { Link } from './link.js';
import { Mask } from './masks.js';
import { colour, Objects } from './objects.js';
import { box, View } from './view.js';

const $ = id => document.getElementById(id);
const LAST = 'activefreq.last';
const PROMPT_MS = 50;
const OPENING_MS = 250;  // what is there sooner needs no words
const PROMPTS = new Set(['click', 'box', 'scribble', 'lasso']);
const ON_STEPS = new Set([...PROMPTS, 'mask', 'undo', 'redo', 'reset']);
const WEIGHTS = {
  freqformer_b0: 'for skin lesions in dermoscopic images',
  freqformer_b0_general: 'for pictures of any kind; needs more clicks than freqformer_b0_guided, and less of the processor',
  freqformer_b0_guided: 'for pictures of any kind',
};
const WORDS = { on: 'connected', off: 'reconnecting', gone: 'ended', elsewhere: 'open in another tab', refused: 'refused', token: 'token needed' };

const app = {
  link: null,
  state: null,        // as the server tells it
  masks: new Map(),   // object -> Mask, on this slice
  sent: new Map(),    // seq -> when it was sent, for the latency
  removing: false,
  heat: false,
  ring: null,
  skipped: null,      // seq whose suggestion was skipped
};

const view = new View($('stage'), {
  click: (x, y, other, when) => click(x, y, app.removing === other, when),
  drawn: (kind, points, other, when) => prompt(kind === 'box' ? box(points) : { op: kind, points, positive: app.removing === other }, when),
});
const objects = new Objects($('objects'), {
  select: object => send({ op: 'select', object }),
  rename: (object, name) => send({ op: 'rename', object, name }),
  remove: async object => { if (await ask(`Delete object ${object}? This cannot be undone.`)) send({ op: 'delete', object }); },
});
const folder = new Folder({ open: (name, box) => openNew({ picture: name, box }), notice, save, visible: () => view.visible(), get state() { return app.state; }, get session() { return app.link?.session; } });

// --- opening ---

let newest = 0;  // of what was to be opened; what is overtaken on its way is not shown any more

async function openNew(body, file) {
  const number = ++newest;
  clearTimeout(slow);
  slow = setTimeout(() => opening(file?.name ?? body.picture), OPENING_MS);
  try {
    notice('');
    const session = body.picture ? await folder.session(body.picture, body.box) : (await (await call('POST', 'v1/sessions', body)).json()).id;
    if (file) await call('PUT', `v1/sessions/${session}/image?name=${encodeURIComponent([...file.name].slice(-200).join(''))}`, file);  // the ending says what it is
    if (number === newest) connect(session);
  } catch (error) {
    if (number === newest) opened();
    failed(error);
  }
}

// Say what is on its way.  The picture before it stays, but dimmed, and takes no clicks any more.
let slow;
function opening(name) {
  $('stage').classList.add('opening');
  $('name').textContent = `Opening ${name} …`;
  said(`Opening ${name}`);
}

function opened() {
  clearTimeout(slow);
  slow = null;
  $('stage').classList.remove('opening');
  refresh();
}

function connect(session) {
  app.link?.close();
  Object.assign(app, { state: null, ring: null, skipped: null, seen: false, latency: null });
  app.masks.clear();
  app.sent.clear();
  history.replaceState(null, '', `#s=${session}`);
  app.link = new Link(session, { state: onState, done: onDone, error: onError, suggestions: onSuggestions, frame: onFrame, status: onStatus });
}

function openFile(file) { if (file) openNew({}, file); }

// --- what the server says ---

function onStatus(status, reason) {
  $('link').textContent = WORDS[status];
  $('link').classList.toggle('on', status === 'on');
  $('stage').classList.toggle('ended', app.link?.ended === true);
  if (status !== 'on' && status !== 'off') opened();
  if (status === 'token') enter();
  if (status === 'gone') { localStorage.removeItem(LAST); leave(); notice('This session is over. Open the picture again.'); }
  if (status === 'elsewhere') notice('This picture was opened in another tab or place.', 'Use it here', () => connect(app.link.session));
  // a connection's last word is short; this is all of it
  if (status === 'refused') get(`v1/sessions/${app.link.session}`).then(() => notice(reason || 'The server refused the connection.'), failed);
  if (status === 'off') app.sent.clear();  // what waits for a connection says nothing about the server's speed
  if (status === 'off') notice('The connection is lost. Clicks are kept, and sent when it is back.');
  if (status === 'on') notice('');
}

async function onState(state, outbox) {
  Object.assign(app, { state, shown: null });
  app.masks = new Map(state.objects.map(o => [o.number, new Mask()]));
  app.waiting = waiting(outbox);
  if (!state.picture) return opened();
  localStorage.setItem(LAST, JSON.stringify({ session: state.id, name: state.picture.name }));
  $('empty').hidden = true;
  document.body.classList.remove('blank');
  if (app.heat) app.link.uncertainty(true);
  size(state.picture.width, state.picture.height);
  await showPicture();
  folder.update();
}

function size(width, height) {
  for (const id of ['mask', 'others']) Object.assign($(id), { width, height });
  view.setSize(width, height);
  refresh();
}

async function showPicture() {
  const { id, slice, window: shown } = app.state;
  const key = JSON.stringify([id, slice, shown]);
  if (app.shown === key) return;
  app.shown = key;
  slow ??= setTimeout(() => opening(app.state.picture.name), OPENING_MS);
  try {
    const blob = await (await call('GET', `v1/sessions/${id}/image?slice=${slice}`)).blob();
    if (app.shown !== key) return;
    const before = $('picture').src;
    $('picture').src = URL.createObjectURL(blob);
    app.seen = true;
    await $('picture').decode().catch(() => {});
    if (before) URL.revokeObjectURL(before);
    if (app.shown === key) opened();
  } catch (error) {
    if (app.shown !== key) return;
    app.shown = null;
    opening(app.state.picture.name);  // what is still shown is another picture or slice
    if (error instanceof Refused && error.status === 401) return enter();
    notice(error.message, 'Try again', showPicture);
  }
}

function onDone(message) {
  const [first] = message.objects;
  if (ON_STEPS.has(message.op)) {
    const i = app.state.objects.findIndex(o => o.number === first.number);
    if (i >= 0) app.state.objects[i] = first;
  } else {
    Object.assign(app.state, message);
    const known = new Set(app.state.objects.map(o => o.number));
    for (const number of app.masks.keys()) if (!known.has(number)) app.masks.delete(number);
    compose();
    if (message.op === 'slice' || message.op === 'window') showPicture();
  }
  app.waiting = waiting(app.link.outbox);
  refresh();
}

function onError(message) {
  app.waiting = waiting(app.link.outbox);
  refresh();
  notice(message.message);
}

function onSuggestions({ seq, object, items }) {
  if (object !== app.state?.object) return;
  app.ring = seq === app.skipped ? null : items[0] ?? null;
  showRing();
}

function onFrame(data) {
  const frame = decode(data);
  if (frame.kind === 'uncertainty') return paintHeat(frame);
  const mask = app.masks.get(frame.object) ?? new Mask();
  app.masks.set(frame.object, mask);
  if (frame.whole) mask.clear();
  mask.patch(frame.box, frame.data);
  if (frame.object !== app.painted) compose();
  else if (frame.whole) compose();
  else paint($('mask'), frame.object, frame.box);
  const drawn = performance.now(), start = app.sent.get(frame.seq);
  for (const seq of app.sent.keys()) if (seq <= frame.seq) app.sent.delete(seq);
  requestAnimationFrame(() => setTimeout(() => {  // after the frame with the mask was painted
    drawOutline();
    if (start === undefined) return;
    const end = performance.now();
    performance.measure('click-to-paint', { start, end, detail: { server: frame.ms, drawn: drawn - start } });
    app.latency = end - start;
    numbers();
  }));
}

// --- painting ---

function paint(canvas, object, box) {
  app.masks.get(object)?.paint(canvas.getContext('2d'), box, colour(object).rgb);
}

// Both mask layers anew: the current object in one, all others in the other.
function compose() {
  if (!app.state?.picture) return;
  const { width, height } = app.state.picture;
  for (const id of ['mask', 'others']) $(id).getContext('2d').clearRect(0, 0, width, height);
  app.painted = app.state.object;
  const others = $('others').getContext('2d');
  for (const [object, mask] of app.masks) {
    if (object === app.painted) { mask.paint($('mask').getContext('2d'), mask, colour(object).rgb); continue; }
    if (mask.empty) continue;
    const part = new OffscreenCanvas(mask.x1 - mask.x0, mask.y1 - mask.y0);  // so that overlaps are drawn over
    const moved = Object.assign(Object.create(Mask.prototype), mask, { x0: 0, y0: 0, x1: part.width, y1: part.height });
    moved.paint(part.getContext('2d'), moved, colour(object).rgb);
    others.drawImage(part, mask.x0, mask.y0);
  }
  drawOutline();
}

function drawOutline() {
  const show = $('show-outline').getAttribute('aria-pressed') === 'true' && shows('show-mask');
  const path = show ? app.masks.get(app.state?.object)?.outline() ?? '' : '';
  for (const line of view.outline.children) line.setAttribute('d', path);
  if (app.state) view.outline.lastElementChild.style.stroke = colour(app.state.object).css;
}

// What the uncertainty is of.
const place = () => `${app.state?.id} ${app.state?.slice} ${app.state?.object}`;

function paintHeat({ width, height, data, object }) {
  if (object !== app.state.object || !current().undo) return;
  app.heated = place();
  const canvas = Object.assign($('heat'), { width, height });
  const context = canvas.getContext('2d'), image = context.createImageData(width, height);
  for (let i = 0; i < data.length; i++) {  // dark blue to yellow, clear where the network is certain
    const v = data[i];
    image.data.set([Math.min(255, v * 1.15), v * 0.9, Math.max(0, 150 - v * 0.6), Math.min(255, v * 2)], 4 * i);
  }
  context.putImageData(image, 0, 0);
}

// --- what the person does ---

// when: of the event that asked for it, on the clock of performance.now()
function send(request, when = performance.now()) {
  if (!app.state?.picture || app.link.ended) return;
  if (app.link.ready) notice('');  // it was of something earlier
  const seq = app.link.send(request);
  if (app.link.ready) app.sent.set(seq, when);
}

function click(x, y, positive, when) { prompt({ op: 'click', x, y, positive }, when); }

// The new mark is drawn together with its mask, or alone if the mask takes longer than PROMPT_MS.  Drawing it at once
// would take a processor from the server just when it computes the mask.
function prompt(request, when) {
  if (!app.state?.picture || app.link.ended || !app.seen || $('stage').classList.contains('opening')) return;
  send(request, when);
  view.calm();
  app.waiting = waiting(app.link.outbox);
  app.ring = null;
  clearTimeout(markTimer);
  markTimer = setTimeout(marks, PROMPT_MS);
}

const waiting = outbox => outbox.filter(r => PROMPTS.has(r.op)).map(r => ({ ...r, waiting: true }));

function answerRing(agree) {
  if (app.ring) click(app.ring.x + 0.5, app.ring.y + 0.5, agree);
}

function skipRing() {
  app.skipped = app.link?.seq ?? null;
  app.ring = null;
  showRing();
}

function showRing() {
  view.setRing(app.ring);
  for (const id of ['hint-in', 'hint-out', 'hint-skip']) $(id).disabled = !app.ring;
}

// --- the panel ---

const current = () => app.state?.objects.find(o => o.number === app.state.object);
const shows = id => $(id).getAttribute('aria-pressed') === 'true';

let markTimer;
function marks() {
  clearTimeout(markTimer);
  showRing();
  view.setMarks([...(current()?.prompts ?? []), ...(app.waiting ?? [])]);
}

function numbers() {
  const object = current(), mask = app.masks.get(app.state?.object);
  if (!object) return;
  const { width, height } = app.state.picture;
  const share = mask ? 100 * mask.area / (width * height) : 0;
  const clicks = object.clicks.length, others = object.prompts.length - clicks;
  const counts = `${clicks} click${clicks === 1 ? '' : 's'}${others ? ` + ${others} drawn` : ''}`;
  $('numbers').textContent = `${counts}${app.latency && object.prompts.length ? ` · ${app.latency.toFixed(0)} ms` : ''}`;
  said(`Object ${object.number}, ${counts}, ${share.toFixed(1)} percent of the picture`);
}

function refresh() {
  const { state } = app, object = current(), picture = state?.picture;
  if (app.heated && (app.heated !== place() || !object?.undo)) {
    app.heated = null;
    $('heat').width = 1;
  }
  if (!$('stage').classList.contains('opening')) $('name').textContent = picture ? `${picture.name} · ${picture.width} × ${picture.height}` : '';
  document.title = picture ? `${picture.name} – activefreq` : 'activefreq';
  $('undo').disabled = $('reset').disabled = !object?.undo;
  $('redo').disabled = !object?.redo;
  objects.show(state?.objects ?? [], state?.object);
  $('volume').hidden = !(picture?.slices > 1);
  if (picture?.slices > 1) {
    $('slice').max = picture.slices - 1;
    $('slice').value = state.slice;
    $('slice-number').textContent = `${state.slice + 1} of ${picture.slices}`;
  }
  $('window').hidden = !picture?.range;
  if (picture?.range) {
    const [low, high] = picture.range, [a, b] = state.window;
    Object.assign($('level'), { min: low, max: high, value: (a + b) / 2 });
    Object.assign($('width'), { min: (high - low) / 500, max: high - low, value: b - a });
    $('window-numbers').textContent = `${+a.toPrecision(4)} to ${+b.toPrecision(4)}`;
  }
  if (object) { marks(); numbers(); }
}

function setWindow() {
  const level = +$('level').value, width = +$('width').value;
  send({ op: 'window', low: level - width / 2, high: level + width / 2 });
}

function toggle(id, apply) {
  const on = !shows(id);
  $(id).setAttribute('aria-pressed', on);
  apply(on);
}

const showMask = on => { $('mask').hidden = $('others').hidden = !on; drawOutline(); };
const showHeat = on => { app.heat = on; $('heat').hidden = !on; app.link?.uncertainty(on); };

function mode(removing) {
  app.removing = view.removing = removing;
  $('add').setAttribute('aria-pressed', !removing);
  $('remove').setAttribute('aria-pressed', removing);
}

const TOOLS = ['click', 'box', 'scribble', 'lasso'];

function tool(name) {
  view.stop();
  view.tool = name;
  for (const id of TOOLS) $(`tool-${id}`).setAttribute('aria-pressed', id === name);
}

// The keyboard's way with the chosen tool: a click at the cross, or the next point of what is drawn.
function atCross(positive) {
  if (view.tool === 'click') return click(view.at.x, view.at.y, positive);
  mode(!positive);
  view.drawAt(view.at, false);
}

function goSlice(by) {
  const index = (app.state?.slice ?? 0) + by;
  if (app.state?.picture?.slices > 1 && index >= 0 && index < app.state.picture.slices) send({ op: 'slice', index });
}

// --- words ---

let saidTimer;
function said(text) {
  clearTimeout(saidTimer);
  saidTimer = setTimeout(() => { $('said').textContent = text; }, 150);
}

function notice(text, action, run) {
  $('notice').replaceChildren(text);
  if (action) {
    const button = Object.assign(document.createElement('button'), { type: 'button', textContent: action });
    button.onclick = () => { notice(''); run(); };
    $('notice').append(' ', button);
  }
  $('notice').hidden = !text;
}

// Download a file, in which all is that was asked for before.
async function save(path) {
  try {
    if (app.link?.ready ?? true) notice('');
    await app.link?.settled();
    await download(path);
  } catch (error) { failed(error); }
}

function failed(error) {
  if (error instanceof Refused && error.status === 401) return enter();
  notice(error.message);
}

function enter() { if (!$('enter').open) $('enter').showModal(); }

function ask(text) {
  $('ask-text').textContent = text;
  $('ask').returnValue = 'no';
  $('ask').showModal();
  return new Promise(resolve => $('ask').addEventListener('close', () => resolve($('ask').returnValue === 'yes'), { once: true }));
}

function leave() {
  app.link?.close();
  app.link = app.state = null;
  refresh();
  history.replaceState(null, '', location.pathname);
  $('empty').hidden = false;
  document.body.classList.add('blank');
}

// --- wiring ---

const actions = {
  open: () => $('file').click(), 'empty-open': () => $('file').click(),
  add: () => mode(false), remove: () => mode(true),
  ...Object.fromEntries(TOOLS.map(name => [`tool-${name}`, () => tool(name)])),
  undo: () => send({ op: 'undo' }), redo: () => send({ op: 'redo' }), reset: () => send({ op: 'reset' }),
  next: () => send({ op: 'next' }),
  'hint-in': () => answerRing(true), 'hint-out': () => answerRing(false), 'hint-skip': skipRing,
  'show-mask': () => toggle('show-mask', showMask),
  'show-outline': () => toggle('show-outline', drawOutline),
  'show-heat': () => toggle('show-heat', showHeat),
  fit: () => view.fit(),
  'help-open': () => $('help').showModal(),
};
for (const [id, run] of Object.entries(actions)) $(id).addEventListener('click', run);

const KEYS = {
  c: 'tool-click', b: 'tool-box', w: 'tool-scribble', g: 'tool-lasso',
  o: 'open', r: 'reset', n: 'next', s: 'hint-skip', h: 'show-mask', l: 'show-outline', u: 'show-heat', 0: 'fit', '?': 'help-open',
};
// Of keys that are held, these alone repeat; what they do can be seen, or undone, before it goes too far.
const HELD = new Set(['ArrowLeft', 'ArrowRight', 'ArrowUp', 'ArrowDown', '+', '=', '-', 'PageUp', 'PageDown', '[', ']', 'z', 'y']);
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

addEventListener('keydown', e => {
  if (document.querySelector('dialog[open]')) return;
  const typing = e.target.matches('input:not([type="range"]), textarea');
  if (typing) return;
  const key = e.key.length === 1 ? e.key.toLowerCase() : e.key;
  const onStage = e.target === $('stage') || e.target === document.body;
  let run;
  if (e.ctrlKey || e.metaKey) {
    if (key === 'z') run = e.shiftKey ? actions.redo : actions.undo;
    else if (key === 'y') run = actions.redo;
  } else if (!e.altKey) {
    if (key in KEYS) run = actions[KEYS[key]];
    else if (key === '+' || key === '=') run = () => view.zoom(1.25);
    else if (key === '-') run = () => view.zoom(0.8);
    else if (key === 'Escape' && view.drawing) run = () => view.stop();
    else if (key === 'a' && view.at) run = () => atCross(true);
    else if (key === 'x' && view.at) run = () => atCross(false);
    else if (key === 'Enter' && onStage && view.drawing && view.at) run = () => view.drawAt(view.at, true);
    else if (key === 'Enter' && onStage) run = () => answerRing(!e.shiftKey);
    else if (key in ARROWS && onStage && app.state) run = () => view.moveCross(...ARROWS[key].map(v => v * (e.shiftKey ? 10 : 1)));
    else if (key === 'PageUp' || key === 'PageDown') run = () => goSlice(key === 'PageUp' ? -1 : 1);
    else if (key === ' ' && onStage) run = () => { view.moving = true; $('stage').classList.add('ready-to-move'); };
    else if (/^[1-9]$/.test(key) && app.state?.objects[key - 1]) run = () => send({ op: 'select', object: app.state.objects[key - 1].number });
    else run = folder.key(key);
  }
  if (run) { e.preventDefault(); if (!e.repeat || HELD.has(key)) run(); }
});
addEventListener('keyup', e => {
  if (e.key === ' ') { view.moving = false; $('stage').classList.remove('ready-to-move'); }
});
addEventListener('blur', () => { view.moving = false; $('stage').classList.remove('ready-to-move'); });

// A button that the mouse pressed gives the keyboard back to the picture: Enter is for the ring then, and not for Done.
document.querySelector('aside').addEventListener('click', e => {
  if (e.pointerType === 'mouse' && document.activeElement?.matches('aside button')) $('stage').focus({ preventScroll: true, focusVisible: false });
});

$('file').addEventListener('change', () => { openFile($('file').files[0]); $('file').value = ''; });
addEventListener('paste', e => openFile([...e.clipboardData.files][0]));
addEventListener('dragover', e => { e.preventDefault(); $('drop').hidden = false; });
addEventListener('dragleave', e => { if (!e.relatedTarget) $('drop').hidden = true; });
addEventListener('drop', e => { e.preventDefault(); $('drop').hidden = true; openFile(e.dataTransfer.files[0]); });

const opacity = () => { for (const id of ['mask', 'others']) $(id).style.opacity = $('opacity').value / 100 * (id === 'mask' ? 1 : 0.7); };
$('opacity').addEventListener('input', opacity);
opacity();
$('slice').addEventListener('input', () => send({ op: 'slice', index: +$('slice').value }));
$('level').addEventListener('change', setWindow);
$('width').addEventListener('change', setWindow);
$('exports').addEventListener('click', e => {
  const format = e.target.dataset.format;
  if (format && app.state?.picture) save(`v1/sessions/${app.state.id}/exports/${format}`);
});
addEventListener('hashchange', () => location.reload());  // somebody entered the address of another session
$('enter-form').addEventListener('submit', () => { setToken($('token').value); start(); });

async function start() {
  showRing();
  try {
    const info = await get('v1/info');
    $('link').textContent = 'ready';
    const weights = `Weights: ${info.model}${info.model in WEIGHTS ? `, ${WEIGHTS[info.model]}` : ''}.`;
    for (const place of document.querySelectorAll('.weights')) place.textContent = weights;
    const volumes = info.reads.includes('volumes');
    if (volumes) $('reads').textContent = 'photographs, 16-bit images, DICOM, NIfTI and MetaImage';
    $('reads-more').hidden = volumes;
    if (info.folder) await folder.load();
  } catch (error) { return failed(error); }
  const session = new URLSearchParams(location.hash.slice(1)).get('s');
  if (session) return connect(session);
  const last = JSON.parse(localStorage.getItem(LAST) ?? 'null');
  if (last) {
    $('resume').textContent = `Go on with ${last.name}`;
    $('resume').hidden = false;
    $('resume').onclick = () => connect(last.session);
  }
}
start();
