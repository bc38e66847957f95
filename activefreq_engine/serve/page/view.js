// The stage: where the picture lies, and what mouse, pen and fingers do to it.
const SVG = 'http://www.w3.org/2000/svg';
const TAP = 10;  // CSS pixels that a finger may move and still have tapped

export class View {
  // on: {click(x, y, positive), moved()}
  constructor(stage, on) {
    this.stage = stage;
    this.on = on;
    this.stack = stage.querySelector('#stack');
    this.outline = stage.querySelector('#outline');
    this.points = stage.querySelector('#points');
    this.hint = stage.querySelector('#hint');
    this.cross = stage.querySelector('#cross');
    this.width = this.height = 0;
    this.scale = 1; this.x = 0; this.y = 0;  // CSS pixels a picture pixel; where the picture's corner lies
    this.pointers = new Map();
    this.marks = []; this.ring = null; this.at = null;
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
    const scale = Math.min(64, Math.max(0.02, this.scale * factor));
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
    this.outline.setAttribute('transform', `translate(${this.x} ${this.y}) scale(${this.scale})`);
    this.placeMarks();
  }

  // Picture coordinates of a place on the stage, or null outside the picture.
  toPicture(clientX, clientY) {
    const box = this.stage.getBoundingClientRect();
    const x = (clientX - box.left - this.x) / this.scale, y = (clientY - box.top - this.y) / this.scale;
    return x >= 0 && y >= 0 && x < this.width && y < this.height ? { x, y } : null;
  }

  // --- marks: clicks [[x, y, positive, waiting]], the suggested one, the keyboard's cross ---

  setMarks(marks) {
    this.marks = marks;
    this.points.replaceChildren(...marks.map(([, , positive, waiting], i) => {
      const group = element('g', { class: `point ${positive ? 'add' : 'remove'}${waiting ? ' waiting' : ''}` });
      group.append(positive ? element('circle', { class: 'body', r: 9 })
        : element('rect', { class: 'body', x: -8.5, y: -8.5, width: 17, height: 17, rx: 3 }));
      const text = element('text', {});
      text.textContent = i + 1;
      group.append(text);
      return group;
    }));
    this.placeMarks();
  }

  setRing(ring) {
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
    this.marks.forEach(([x, y], i) => put(this.points.children[i], x, y));
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
    if (e.target.closest('button, a, input') || !this.width) return;
    this.stage.focus({ preventScroll: true, focusVisible: false });
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
    if (!this.pointers.delete(e.pointerId)) return;
    if (this.tapping && finished) this.click(e, false);
    this.tapping = false;
    if (!this.pointers.size) this.stage.classList.remove('moving');
  }

  click(e, other) {
    const at = this.toPicture(e.clientX, e.clientY);
    if (!at) return;
    this.setCross(null);
    this.on.click(at.x, at.y, other);
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
