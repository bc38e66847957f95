// The server's folder of pictures: which are done, skipped, open, and going from one to the next.
import { call, download, get } from './api.js';

const $ = id => document.getElementById(id);
const SIGNS = { done: '✓', skipped: '–', open: '' };

export class Folder {
  // app: {open(name), notice(text), state}
  constructor(app) {
    this.app = app;
    this.pictures = [];
    $('folder-previous').onclick = () => this.go(-1);
    $('folder-next').onclick = () => this.go(1);
    $('folder-done').onclick = () => this.mark('done');
    $('folder-skip').onclick = () => this.mark('skipped');
    $('folder-export').onclick = () => download('v1/pictures/coco').catch(error => app.notice(error.message));
  }

  async load() {
    this.pictures = await get('v1/pictures');
    $('folder').hidden = !this.pictures.length;
    document.body.classList.toggle('alone', !this.pictures.length);
    this.update();
  }

  async session(name) {
    const answer = await call('POST', 'v1/sessions', { picture: name });
    this.current = name;
    return (await answer.json()).id;
  }

  key(key) {
    if (!this.pictures.length) return null;
    return { '[': () => this.go(-1), ']': () => this.go(1), d: () => this.mark('done'), k: () => this.mark('skipped') }[key] ?? null;
  }

  // The place of the picture that is open; -1 when it is none of the folder's.
  get place() {
    const id = this.app.state?.id;
    return this.pictures.findIndex(p => p.session === id || p.name === this.current);
  }

  go(by) {
    const place = this.place, next = place < 0 ? 0 : place + by;
    if (this.pictures[next]) this.app.open(this.pictures[next].name);
  }

  async mark(status) {
    const place = this.place;
    if (place < 0) return;
    const name = this.pictures[place].name;
    try {
      await call('PUT', 'v1/pictures/status', { picture: name, status });
    } catch (error) { return this.app.notice(error.message); }
    this.pictures[place].status = status;
    this.update();
    const after = [...this.pictures.slice(place + 1), ...this.pictures.slice(0, place)].find(p => p.status === 'open');
    if (after) this.app.open(after.name);
    else this.app.notice('No picture is open any more: all are done or skipped.');
  }

  update() {
    if (!this.pictures.length) return;
    const counts = { done: 0, skipped: 0, open: 0 };
    for (const picture of this.pictures) counts[picture.status]++;
    $('folder-count').textContent = `${counts.done} done, ${counts.skipped} skipped, ${counts.open} open`;
    Object.assign($('folder-progress'), { max: this.pictures.length, value: counts.done + counts.skipped });
    const place = this.place;
    $('folder-done').disabled = $('folder-skip').disabled = place < 0;
    $('folder-list').replaceChildren(...this.pictures.map((picture, i) => {
      const item = document.createElement('li'), button = document.createElement('button'), sign = document.createElement('span');
      sign.className = 'state';
      sign.textContent = SIGNS[picture.status];
      button.type = 'button';
      button.append(sign, picture.name);
      button.setAttribute('aria-label', `${picture.name}, ${picture.status}`);
      if (i === place) button.setAttribute('aria-current', 'true');
      button.onclick = () => this.app.open(picture.name);
      item.append(button);
      return item;
    }));
  }
}
