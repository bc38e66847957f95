// The stage: where the picture lies, and what mouse, pen and fingers do to it.  A drag with Shift draws a box, one with
// Alt a scribble; a tool that was chosen draws with any drag.
const SVG = 'http://www.w3.org/2000/svg';
const TAP = 10;  // CSS pixels that a finger may move and still have tapped
const APART = 2;  // CSS pixels between two points of a line that is drawn
const POINTS = 2000;  // of one line; of a longer one every other is left out

export class View {
  // on: {click(x, y, other, when), drawn(kind, points, other, when)}; `other` is the sign that is not chosen
  constructor(stage, on) {
    this.stage = stage;
    this.on = on;
    this.stack = stage.querySelector('#stack');
    this.outline = stage.querySelector('#outline');
    this.lines = stage.querySelector('#lines');
    this.sketch = stage.querySelector('#sketch');
    this.points = stage.querySelector('#points');
    this.hint = stage.querySelector('#hint');
    this.cross = stage.querySelector('#cross');
    this.width = this.height = 0;
    this.scale = 1; this.x = 0; this.y = 0;  // CSS pixels a picture pixel; where the picture's corner lies
    this.pointers = new Map();
    this.marks = []; this.ring = null; this.at = null;
    this.tool = 'click';  // or box, scribble, lasso
    this.drawing = null;
    stage.addEventListener('pointerdown', e => this.down(e));
    stage.addEventListener('pointermove', e => this.move(e));
    stage.addEventListener('pointerup', e => this.up(e, true));
    stage.addEventListener('pointercancel', e => this.up(e, false));
    stage.addEventListener('contextmenu', e => e.preventDefault());
    stage.addEventListener('wheel', e => this.wheel(e), { passive: false });
    new ResizeObserver(() => this.resized()).observe(stage);
  }

  setSize(width, height) {
    const same = width === this.width && height === this.height;
    this.width = width; this.height = height;
    for (const layer of this.stack.children) {
      layer.style.width = `${width}px`; layer.style.height = `${height}px`;
    }
    if (!same) { this.at = null; this.fit(); }
  }

  fit() {
    const { clientWidth: w, clientHeight: h } = this.stage;
    if (!this.width || !w) return;
    this.scale = Math.min((w - 24) / this.width, (h - 24) / this.height);
    this.x = (w - this.width * this.scale) / 2;
    this.y = (h - this.height * this.scale) / 2;
    this.fitted = true;
    this.place();
  }

  resized() { if (this.fitted) this.fit(); else this.place(); }

  zoom(factor, x = this.stage.clientWidth / 2, y = this.stage.clientHeight / 2) {
    const scale = Math.min(Math.max(64, this.scale), Math.max(Math.min(0.02, this.scale), this.scale * factor));  // to fit, it may be beyond
    this.x = x - (x - this.x) * scale / this.scale;
    this.y = y - (y - this.y) * scale / this.scale;
    this.scale = scale;
    this.fitted = false;
    this.place();
  }

  pan(dx, dy) { this.x += dx; this.y += dy; this.fitted = false; this.place(); }

  place() {
    this.stack.style.transform = `translate(${this.x}px,${this.y}px) scale(${this.scale})`;
    this.stack.classList.toggle('large', this.scale * devicePixelRatio >= 3);
    for (const layer of [this.outline, this.lines, this.sketch]) {
      layer.setAttribute('transform', `translate(${this.x} ${this.y}) scale(${this.scale})`);
    }
    this.placeMarks();
  }

  // Picture coordinates of a place on the stage, or null outside the picture.
  toPicture(clientX, clientY) {
    const box = this.stage.getBoundingClientRect();
    const x = (clientX - box.left - this.x) / this.scale, y = (clientY - box.top - this.y) / this.scale;
    return x >= 0 && y >= 0 && x < this.width && y < this.height ? { x, y } : null;
  }

  // The part of the picture that is on the screen: x0, y0, x1, y1.
  visible() {
    const { clientWidth: w, clientHeight: h } = this.stage;
    const inside = (v, most) => Math.min(most, Math.max(0, v / this.scale));
    return [inside(-this.x, this.width), inside(-this.y, this.height), inside(w - this.x, this.width), inside(h - this.y, this.height)];
  }

  // --- marks: prompts as the server tells them, some `waiting`; the suggested one, the keyboard's cross ---

  setMarks(prompts) {
    this.marks = prompts.map(start);
    this.lines.replaceChildren(...prompts.filter(p => p.op !== 'click').map(p => this.line(p)));
    this.points.replaceChildren(...prompts.map((p, i) => {
      const positive = p.positive ?? true;
      const group = element('g', { class: `point ${p.op} ${positive ? 'add' : 'remove'}${p.waiting ? ' waiting' : ''}` });
      group.append(positive ? element('circle', { class: 'body', r: 9 })
        : element('rect', { class: 'body', x: -8.5, y: -8.5, width: 17, height: 17, rx: 3 }));
      const text = element('text', {});
      text.textContent = i + 1;
      group.append(text);
      return group;
    }));
    this.placeMarks();
  }

  // A box, a scribble or a lasso, in picture coordinates.
  line(prompt) {
    const [first, ...rest] = prompt.op === 'box' ? corners(prompt) : prompt.points.map(centred(prompt.op));
    const d = `M${first}${rest.length ? `L${rest.join(' ')}` : 'h0.01'}${prompt.op === 'scribble' ? '' : 'Z'}`;
    const group = element('g', { class: `drawn ${prompt.positive ?? true ? 'add' : 'remove'}${prompt.waiting ? ' waiting' : ''}` });
    for (const name of ['casing', 'line']) group.append(element('path', { class: name, d }));
    return group;
  }

  // The ring stands still from now on: while a click is computed, nothing should draw.
  calm() { this.hint.querySelector('.pulse')?.remove(); }

  setRing(ring) {
    if (ring === this.ring) return;  // or its pulse would begin again
    this.ring = ring;
    this.hint.replaceChildren();
    if (ring) {
      for (const name of ['casing', 'ring', 'pulse']) this.hint.append(element('circle', { class: name, r: 13 }));
      const text = element('text', {});
      text.textContent = '?';
      this.hint.append(text);
    }
    this.placeMarks();
  }

  setCross(at) { this.at = at; this.cross.toggleAttribute('hidden', !at); this.placeMarks(); }

  placeMarks() {
    const put = (node, x, y) => node.setAttribute('transform',
      `translate(${this.x + x * this.scale} ${this.y + y * this.scale})`);
    this.marks.forEach(({ x, y }, i) => put(this.points.children[i], x, y));
    if (this.ring) put(this.hint, this.ring.x + 0.5, this.ring.y + 0.5);
    if (this.at) put(this.cross, this.at.x, this.at.y);
  }

  moveCross(dx, dy) {
    const step = Math.max(1, 4 / this.scale);
    const from = this.at ?? { x: Math.floor(this.width / 2) + 0.5, y: Math.floor(this.height / 2) + 0.5 };
    const inside = (v, most) => Math.min(most - 0.5, Math.max(0.5, Math.floor(v) + 0.5));
    this.setCross(this.at ? { x: inside(from.x + dx * step, this.width), y: inside(from.y + dy * step, this.height) } : from);
    const { clientWidth: w, clientHeight: h } = this.stage;
    const x = this.x + this.at.x * this.scale, y = this.y + this.at.y * this.scale;
    if (x < 0 || y < 0 || x > w || y > h) this.pan(w / 2 - x, h / 2 - y);
  }

  // --- pointers ---

  down(e) {
    if (e.target.closest('button, a, input, #notice, #empty') || !this.width) return;
    this.stage.focus({ preventScroll: true, focusVisible: false });
    const kind = e.shiftKey ? 'box' : e.altKey ? 'scribble' : this.tool;
    if (this.drawing && e.pointerType === 'touch') this.giveUp();  // a second finger moves the picture
    else if (kind !== 'click' && !this.moving && !this.pointers.size && (e.button === 0 || e.button === 2)) {
      const at = this.toPicture(e.clientX, e.clientY);
      if (!at) return;
      this.stage.setPointerCapture(e.pointerId);
      this.pointers.set(e.pointerId, { x: e.clientX, y: e.clientY, x0: e.clientX, y0: e.clientY });
      this.begin(kind, at, e.button === 2);
      e.preventDefault();
      return;
    }
    if (e.pointerType === 'touch' || e.button === 1 || this.moving) {
      this.stage.setPointerCapture(e.pointerId);
      this.pointers.set(e.pointerId, { x: e.clientX, y: e.clientY, x0: e.clientX, y0: e.clientY });
      this.tapping = e.pointerType === 'touch' && !this.moving && this.pointers.size === 1;
      this.stage.classList.toggle('moving', !this.tapping);
      e.preventDefault();
    } else if (e.button === 0 || e.button === 2) {
      this.click(e, e.button === 2);
    }
  }

  move(e) {
    const pointer = this.pointers.get(e.pointerId);
    if (!pointer) return;
    if (this.drawing) return this.draw(e, pointer);
    if (this.tapping) {
      if (Math.hypot(e.clientX - pointer.x0, e.clientY - pointer.y0) < TAP) return;
      this.tapping = false;
    }
    const box = this.stage.getBoundingClientRect();
    const before = spread([...this.pointers.values()]);
    Object.assign(pointer, { x: e.clientX, y: e.clientY });
    const after = spread([...this.pointers.values()]);
    this.pan(after.x - before.x, after.y - before.y);
    if (this.pointers.size > 1) this.zoom(after.size / before.size, after.x - box.left, after.y - box.top);
  }

  up(e, finished) {
    const pointer = this.pointers.get(e.pointerId);
    if (!this.pointers.delete(e.pointerId)) return;
    if (this.drawing) return this.finish(e, pointer, finished);
    if (this.tapping && finished) this.click(e, false);
    this.tapping = false;
    if (!this.pointers.size) this.stage.classList.remove('moving');
  }

  // --- drawing: by dragging, or by the keyboard's cross, a corner at a time ---

  begin(kind, at, other) {
    this.setCross(null);
    this.drawing = { kind, other, points: [[at.x, at.y]] };
    this.show();
  }

  draw(e, pointer) {
    const { kind, points } = this.drawing;
    if (kind !== 'box' && Math.hypot(e.clientX - pointer.x, e.clientY - pointer.y) < APART) return;
    Object.assign(pointer, { x: e.clientX, y: e.clientY });
    const box = this.stage.getBoundingClientRect();
    this.extend([(e.clientX - box.left - this.x) / this.scale, (e.clientY - box.top - this.y) / this.scale]);
    if (points.length > POINTS) this.drawing.points = points.filter((_, i) => i % 2 === 0);
  }

  // The next point, held within the picture.
  extend([x, y]) {
    const { kind, points } = this.drawing;
    const most = kind === 'scribble' ? 0.01 : 0;  // a scribble's points lie in pixels, a box's and a lasso's on edges
    const at = [Math.min(this.width - most, Math.max(0, x)), Math.min(this.height - most, Math.max(0, y))];
    if (kind === 'box') points[1] = at; else points.push(at);
    this.show();
  }

  show() {
    const { kind, points, other } = this.drawing;
    const prompt = kind === 'box' ? box(points) : { op: kind, points };
    this.sketch.replaceChildren(this.line({ ...prompt, positive: kind === 'box' || !this.removing === !other }));
  }

  finish(e, pointer, finished) {
    const { kind, points, other } = this.drawing;
    this.giveUp();
    if (!finished) return;
    const moved = points.length > 1 && points.some(p => Math.hypot(p[0] - points[0][0], p[1] - points[0][1]) * this.scale >= 3);
    if (moved && (kind === 'scribble' || kind === 'box' || points.length > 2)) this.on.drawn(kind, points, other, e?.timeStamp);
    else if (e) this.click(e, other);
  }

  giveUp() { this.drawing = null; this.sketch.replaceChildren(); }

  // The same while a button may be down: what it does until it is let go draws and moves nothing.
  stop() { if (this.drawing) this.pointers.clear(); this.giveUp(); }

  // The keyboard's way: a point where the cross is; Enter ends a scribble or a lasso, the second corner ends a box.
  drawAt(at, end) {
    if (!this.drawing) this.begin(this.tool, at, false);
    else if (!end) this.extend([at.x, at.y]);
    if (end || (this.drawing.kind === 'box' && this.drawing.points.length > 1)) this.finish(null, null, true);
    this.setCross(at);
  }

  click(e, other) {
    const at = this.toPicture(e.clientX, e.clientY);
    if (!at) return;
    this.setCross(null);
    this.on.click(at.x, at.y, other, e.timeStamp);
  }

  wheel(e) {
    e.preventDefault();
    const box = this.stage.getBoundingClientRect();
    const lines = e.deltaMode === 1 ? 16 : 1;
    this.zoom(Math.exp(-Math.max(-240, Math.min(240, e.deltaY * lines)) * (e.ctrlKey ? 0.01 : 0.002)),
      e.clientX - box.left, e.clientY - box.top);
  }
}

function element(name, attributes) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

// Middle of some pointers, and how far they are from it.
function spread(pointers) {
  const x = pointers.reduce((sum, p) => sum + p.x, 0) / pointers.length;
  const y = pointers.reduce((sum, p) => sum + p.y, 0) / pointers.length;
  return { x, y, size: Math.max(1, Math.hypot(pointers[0].x - x, pointers[0].y - y)) };
}

const corners = ({ x0, y0, x1, y1 }) => [[x0, y0], [x1, y0], [x1, y1], [x0, y1]];

// A scribble's points mean pixels, and are shown at their centres.
const centred = op => ([x, y]) => (op === 'scribble' ? [Math.floor(x) + 0.5, Math.floor(y) + 0.5] : [x, y]);

// Where a prompt's number stands.
function start(prompt) {
  if (prompt.op === 'click') return prompt;
  const [x, y] = prompt.op === 'box' ? [prompt.x0, prompt.y0] : prompt.points[0];
  return { x, y };
}

// The box between two corners, in any order, as a request.
export function box([[xa, ya], [xb, yb] = [xa, ya]]) {
  return { op: 'box', x0: Math.min(xa, xb), y0: Math.min(ya, yb), x1: Math.max(xa, xb), y1: Math.max(ya, yb) };
}
