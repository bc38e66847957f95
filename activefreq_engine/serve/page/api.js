// The REST interface, with the token that came in the address's fragment and is kept for this tab alone.
const KEY = 'activefreq.token';

const fragment = new URLSearchParams(location.hash.slice(1));
if (fragment.has('token')) {
  sessionStorage.setItem(KEY, fragment.get('token'));
  fragment.delete('token');
  history.replaceState(null, '', fragment.size ? `#${fragment}` : location.pathname);
}

export const token = () => sessionStorage.getItem(KEY);
export const setToken = value => sessionStorage.setItem(KEY, value);

export class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

// An answer of the server; raises Refused with the server's own words.
export async function call(method, path, body) {
  const headers = token() ? { Authorization: `Bearer ${token()}` } : {};
  if (body !== undefined && !(body instanceof Blob)) {
    headers['Content-Type'] = 'application/json';
    body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, { method, headers, body });
  } catch {
    if (body instanceof Blob) await body.slice(0, 1).arrayBuffer().catch(() => { throw new Refused(0, 'The file cannot be read. Of a folder, choose one of its files.'); });
    throw new Refused(0, 'The server cannot be reached. Is it still running?');
  }
  if (answer.ok) return answer;
  const detail = await answer.json().then(json => json.detail, () => answer.statusText);
  throw new Refused(answer.status, String(detail));
}

export const get = async path => (await call('GET', path)).json();

export async function download(path) {
  const answer = await call('GET', path);
  const name = /filename\*=UTF-8''([^;]+)/.exec(answer.headers.get('content-disposition') ?? '')?.[1];
  const link = document.createElement('a');
  link.href = URL.createObjectURL(await answer.blob());
  link.download = name ? decodeURIComponent(name) : 'export';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
