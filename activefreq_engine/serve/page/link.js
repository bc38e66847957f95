// The connection to a session.  Requests are numbered and kept (also over a reload) until the server has answered; a
// new connection sends again what is unanswered, and the server leaves out what it has done already.
import { token } from './api.js';

const AGAIN = [100, 250, 500, 1000, 2000];  // ms between attempts to connect
const END = { 4401: 'token', 4404: 'gone', 4409: 'elsewhere', 4400: 'refused' };

export class Link {
  // on: {state, done, error, suggestions, frame, status}
  constructor(session, on) {
    this.session = session;
    this.on = on;
    this.tries = 0;
    this.settling = [];
    this.key = `activefreq.outbox.${session}`;
    this.outbox = JSON.parse(sessionStorage.getItem(this.key) ?? '[]');
    this.seq = this.outbox.at(-1)?.seq ?? 0;
    this.connect();
  }

  connect() {
    const address = new URL(`v1/sessions/${this.session}/live`, document.baseURI);
    address.protocol = address.protocol.replace('http', 'ws');
    address.hash = '';
    const socket = this.socket = new WebSocket(address);
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => socket.send(JSON.stringify({ type: 'hello', token: token() }));
    socket.onmessage = ({ data }) => this.socket === socket && this.take(data);
    socket.onclose = ({ code, reason }) => this.socket === socket && this.lost(code, reason);
  }

  take(data) {
    if (typeof data !== 'string') return this.on.frame(data);
    const message = JSON.parse(data);
    if (message.type === 'state') {
      this.ready = true;
      this.tries = 0;
      this.seq = Math.max(this.seq, message.seq);
      this.settle(message.seq);
      this.on.state(message, this.outbox);
      for (const request of this.outbox) this.socket.send(JSON.stringify(request));
      this.on.status('on');
    } else {
      if (message.type === 'done' || message.type === 'error') this.settle(message.seq);
      this.on[message.type](message);
    }
  }

  settle(seq) {
    if (seq == null) return;
    this.outbox = this.outbox.filter(request => request.seq > seq);
    this.keep();
    if (!this.outbox.length) this.settling.splice(0).forEach(resolve => resolve());
  }

  // Resolves when everything that was sent is answered, or will not be.
  settled() { return new Promise(resolve => (this.outbox.length && this.socket && !this.ended ? this.settling.push(resolve) : resolve())); }

  keep() { sessionStorage.setItem(this.key, JSON.stringify(this.outbox)); }

  send(request) {
    request.seq = ++this.seq;
    this.outbox.push(request);
    if (this.ready) this.socket.send(JSON.stringify(request));
    this.keep();
    return request.seq;
  }

  // Whether to send the uncertainty along; not numbered, for it changes nothing.
  uncertainty(on) { if (this.ready) this.socket.send(JSON.stringify({ op: 'uncertainty', on })); }

  lost(code, reason) {
    this.ready = false;
    if (code in END) {
      this.ended = true;
      if (code === 4409) { this.outbox = []; this.keep(); }
      this.settling.splice(0).forEach(resolve => resolve());
      return this.on.status(END[code], reason);
    }
    this.on.status('off');
    setTimeout(() => this.socket && this.connect(), AGAIN[Math.min(this.tries++, AGAIN.length - 1)]);
  }

  close() {
    const socket = this.socket;
    this.socket = null;
    socket?.close();
    this.settling.splice(0).forEach(resolve => resolve());
  }
}
