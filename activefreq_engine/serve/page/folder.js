// The server's folder of pictures: which are done, skipped, open, and going from one to the next.
import { call, get } from './api.js';

const $ = id => document.getElementById(id);
const SIGNS = { done: '✓', skipped: '–', open: '' };

export class Folder {
  // app: {open(name, box), notice(text), save(path), visible(), state, session}
  constructor(app) {
    this.app = app;
    this.pictures = [];
    this.next = null;  // where keys lead that are pressed before it is there: {place}
    $('folder-previous').onclick = () => this.go(-1);
    $('folder-next').onclick = () => this.go(1);
    $('empty-folder').onclick = () => this.open(Math.max(0, this.pictures.findIndex(p => p.status === 'open')));
    $('folder-done').onclick = () => this.mark('done');
    $('folder-skip').onclick = () => this.mark('skipped');
    $('folder-reopen').onclick = () => this.mark('open');
    $('slide-closer').onclick = () => this.closer();
    $('slide-whole').onclick = () => this.open(this.place);
    $('slide-export').onclick = () => app.save(`v1/pictures/geojson?picture=${encodeURIComponent(this.pictures[this.place].name)}`);
    $('folder-export').onclick = () => app.save('v1/pictures/coco');
  }

  async load() {
    this.pictures = await get('v1/pictures');
    $('folder').hidden = $('empty-folder').hidden = !this.pictures.length;
    $('empty-open').classList.toggle('primary', !this.pictures.length);
    document.body.classList.toggle('alone', !this.pictures.length);
    this.update();
  }

  async session(name, box) {
    const answer = await call('POST', 'v1/sessions', { picture: name, box });
    const { id: session } = await answer.json(), picture = this.pictures.find(p => p.name === name);
    if (!box) picture.session = session;
    else if (!picture.regions.some(region => region.session === session)) picture.regions.push({ box, session });
    return session;
  }

  // --- slides: the whole of it is shown coarsely, and regions of it finely, each a session of its own ---

  // What is on the screen, in pixels of the slide's full size.
  get onScreen() {
    const { picture } = this.app.state, [x0, y0, x1, y1] = picture.region.box;
    const x = (x1 - x0) / picture.width, y = (y1 - y0) / picture.height, [a, b, c, d] = this.app.visible();
    return [x0 + a * x, y0 + b * y, x0 + c * x, y0 + d * y].map(Math.round);
  }

  closer() {
    const picture = this.app.state?.picture;
    if (!picture?.region || this.place < 0 || $('slide-closer').disabled) return;
    const [a, b, c, d] = this.app.visible();
    if ((c - a) * (d - b) > 0.8 * picture.width * picture.height) return this.app.notice('Zoom in first: what is on the screen opens at a finer level.');
    this.open(this.place, this.onScreen);
  }

  updateSlide() {
    const region = this.app.state?.picture?.region, picture = this.pictures[this.place];
    $('slide').hidden = !region || !picture;
    if ($('slide').hidden) return;
    const [x0, y0, x1, y1] = region.box, whole = x1 - x0 >= region.width && y1 - y0 >= region.height;
    const shrunk = (x1 - x0) / this.app.state.picture.width;
    $('slide-where').textContent = shrunk > 1.005 ? `1 : ${+shrunk.toPrecision(2)}` : 'full size';
    $('slide-whole').disabled = whole;
    $('slide-closer').disabled = shrunk <= 1.005;
    $('slide-regions').replaceChildren(...picture.regions.map(({ box, session }, i) => {
      const item = document.createElement('li'), button = document.createElement('button');
      Object.assign(button, { type: 'button', textContent: `Region ${i + 1}`, onclick: () => this.open(this.place, box) });
      const count = document.createElement('span');
      Object.assign(count, { className: 'count', textContent: `${box[2] - box[0]} × ${box[3] - box[1]} at ${box[0]}, ${box[1]}` });
      button.append(count);
      button.setAttribute('aria-current', session === this.app.state.id);
      item.append(button);
      return item;
    }));
  }

  key(key) {
    if (!this.pictures.length) return null;
    return { v: () => this.closer(), '[': () => this.go(-1), ']': () => this.go(1), d: () => this.mark('done'), k: () => this.mark('skipped') }[key] ?? null;
  }

  // The place of the picture that is open or about to be shown; -1 when it is none of the folder's.
  get place() {
    const id = this.app.session;
    return id ? this.pictures.findIndex(p => p.session === id || p.regions.some(region => region.session === id)) : -1;
  }

  async open(place, box) {
    const next = this.next = { place };
    await this.app.open(this.pictures[place].name, box);
    if (this.next === next) this.next = null;
  }

  go(by) {
    const place = this.next?.place ?? this.place, next = place < 0 ? 0 : place + by;
    if (this.pictures[next]) this.open(next);
  }

  // Only what is seen is marked, and once: not while a picture is on its way.
  async mark(status) {
    const place = this.place;
    if (place < 0 || this.next || !this.app.state?.picture) return;
    const next = this.next = { place };
    try {
      await call('PUT', 'v1/pictures/status', { picture: this.pictures[place].name, status });
    } catch (error) {
      if (this.next === next) this.next = null;
      return this.app.notice(error.message);
    }
    this.pictures[place].status = status;
    this.update();
    if (this.next !== next) return;  // somebody went on
    this.next = null;
    if (status === 'open') return;
    const places = [...this.pictures.keys()], open = i => this.pictures[i].status === 'open';
    const after = [...places.slice(place + 1), ...places.slice(0, place)].find(open);
    if (after !== undefined) this.open(after);
    else this.app.notice('No picture is open any more: all are done or skipped.');
  }

  update() {
    this.updateSlide();
    if (!this.pictures.length) return;
    const counts = { done: 0, skipped: 0, open: 0 };
    for (const picture of this.pictures) counts[picture.status]++;
    $('folder-count').textContent = `${counts.done} done, ${counts.skipped} skipped, ${counts.open} open`;
    $('folder-export').disabled = !counts.done;
    Object.assign($('folder-progress'), { max: this.pictures.length, value: counts.done + counts.skipped });
    const place = this.place;
    $('folder-place').textContent = place < 0 ? '' : `${place + 1} of ${this.pictures.length}`;
    $('folder-done').disabled = $('folder-skip').disabled = place < 0;
    $('folder-previous').disabled = place < 1;
    $('folder-next').disabled = place === this.pictures.length - 1;
    const status = this.pictures[place]?.status ?? 'open';
    $('folder-state').hidden = status === 'open';
    $('folder-state').firstElementChild.textContent = `This picture is ${status}.`;
    $('folder-list').replaceChildren(...this.pictures.map((picture, i) => {
      const item = document.createElement('li'), button = document.createElement('button'), sign = document.createElement('span');
      sign.className = 'state';
      sign.textContent = SIGNS[picture.status];
      button.type = 'button';
      button.append(sign, picture.name);
      button.setAttribute('aria-label', `${picture.name}, ${picture.status}`);
      if (i === place) button.setAttribute('aria-current', 'true');
      button.onclick = () => this.open(i);
      item.append(button);
      return item;
    }));
  }
}
