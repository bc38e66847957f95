// The list of objects.  Colours are told apart also by people who do not tell red from green.
const COLOURS = [[90, 180, 240], [245, 161, 58], [240, 228, 66], [200, 120, 230], [0, 190, 160], [255, 130, 110], [150, 150, 255], [230, 230, 230]];

export function colour(number) {
  const rgb = COLOURS[(number - 1) % COLOURS.length];
  return { rgb, css: `rgb(${rgb})` };
}

export class Objects {
  // on: {select(number), rename(number, name), remove(number)}
  constructor(list, on) {
    this.list = list;
    this.on = on;
  }

  show(objects, current) {
    const text = JSON.stringify([objects.map(o => [o.number, o.name, o.prompts.length, o.slices.length]), current]);
    if (text === this.text || this.list.querySelector('input')) return;
    this.text = text;
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    this.list.replaceChildren(...objects.map(object => this.row(object, object.number === current)));
    if (focused) this.list.querySelector(`[data-key="${focused}"]`)?.focus();
  }

  row(object, current) {
    const title = object.name || `Object ${object.number}`;
    const pick = button('pick', `pick${object.number}`, () => this.on.select(object.number));
    const swatch = document.createElement('i');
    swatch.className = 'swatch';
    swatch.style.background = colour(object.number).css;
    const name = document.createElement('span'), count = document.createElement('span');
    name.textContent = title;
    count.className = 'count';
    count.textContent = object.prompts.length || (object.slices.length ? `${object.slices.length} sl.` : '');
    pick.append(swatch, name, count);
    pick.setAttribute('aria-current', current);
    pick.setAttribute('aria-label', `${title}, ${object.prompts.length} prompts`);
    const rename = button('small', `rename${object.number}`, () => this.edit(row, object));
    Object.assign(rename, { textContent: '✎', title: 'Rename' });
    rename.setAttribute('aria-label', `Rename ${title}`);
    const remove = button('small', `remove${object.number}`, () => this.on.remove(object.number));
    Object.assign(remove, { textContent: '✕', title: 'Delete' });
    remove.setAttribute('aria-label', `Delete ${title}`);
    pick.addEventListener('dblclick', () => this.edit(row, object));
    const row = document.createElement('li');
    row.append(pick, rename, remove);
    return row;
  }

  edit(row, object) {
    const input = document.createElement('input');
    Object.assign(input, { value: object.name, maxLength: 100, placeholder: `Object ${object.number}` });
    input.setAttribute('aria-label', `Name of object ${object.number}`);
    let done = false;
    const finish = keep => {
      if (done) return;
      done = true;
      this.text = null;
      input.remove();
      if (keep && input.value !== object.name) this.on.rename(object.number, input.value.trim());
      row.replaceWith(this.row(object, row.querySelector('.pick')?.getAttribute('aria-current') === 'true'));
    };
    input.addEventListener('keydown', e => { if (!e.isComposing && (e.key === 'Enter' || e.key === 'Escape')) finish(e.key === 'Enter'); });
    input.addEventListener('blur', () => finish(true));
    row.prepend(input);
    for (const other of row.querySelectorAll('button')) other.hidden = true;
    input.focus();
    input.select();
  }
}

function button(name, key, run) {
  const node = document.createElement('button');
  Object.assign(node, { type: 'button', className: name, onclick: run });
  node.dataset.key = key;
  return node;
}
