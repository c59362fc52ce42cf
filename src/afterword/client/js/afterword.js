/* Afterword's client for browsers and Node: asks the gateway, and tells it what the user did with the answer.
   One file, no dependencies. Events wait in a queue until the gateway has them, also over a reload. */
export class Afterword {
  /** @param {import("./afterword.d.ts").Options} options */
  constructor({ url = "", key, user, conversation, model = "afterword", storage, wait = 800, onError } = {}) {
    this.url = url.replace(/\/+$/, "").replace(/\/v1$/, "");
    Object.assign(this, { key, user, conversation, model, wait });
    this.onError = onError || ((error) => console.warn("afterword:", error.message));
    this.storage = storage === undefined ? globalThis.localStorage : storage;
    this.slot = `afterword-events:${this.url}`;
    this.events = this.load();
    this.sending = null;
    if (globalThis.addEventListener) {
      addEventListener("pagehide", () => this.leave());
      addEventListener("online", () => this.flush());
    }
    if (this.events.length) this.later(0);
  }

  headers() {
    return { "Content-Type": "application/json", ...(this.key ? { Authorization: `Bearer ${this.key}` } : {}) };
  }

  /** Asks for an answer; `onText` gets each piece of a streamed one. */
  async chat(messages, { onText, signal, ...more } = {}) {
    const body = { model: this.model, messages, stream: Boolean(onText), ...more };
    if (this.user) body.user ??= this.user;
    // in the body and not as a header: names may hold any letter
    if (this.conversation) body.metadata = { conversation: this.conversation, ...body.metadata };
    const response = await fetch(`${this.url}/v1/chat/completions`, {
      method: "POST", headers: this.headers(), body: JSON.stringify(body), signal,
    });
    if (!response.ok) throw await failure(response);
    if (!onText) {
      const answer = await response.json();
      return { id: answer.id, text: answer.choices[0].message.content ?? "", raw: answer };
    }
    let id = response.headers.get("x-afterword-turn");
    let text = "", rest = "";
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    try {
      for (let part; !(part = await reader.read()).done; ) {
        const lines = (rest + part.value).split("\n");
        rest = lines.pop();
        for (const line of lines) {
          if (!line.startsWith("data: {")) continue;
          const chunk = JSON.parse(line.slice(6));
          if (chunk.error) throw new Error(chunk.error.message);
          id = chunk.id ?? id;
          const piece = chunk.choices?.[0]?.delta?.content;
          if (piece) { text += piece; onText(piece, text); }
        }
      }
    } catch (error) {
      if (error.name === "AbortError" && id) this.send(id, "stopped");
      throw Object.assign(error, { turn: id, text });
    }
    return { id, text };
  }

  // ---- what the user did
  accept(turn) { return this.send(turn, "accepted"); }
  edit(turn, before, after) { return before === after ? this.accept(turn) : this.send(turn, "edited", { final_text: after }); }
  retry(turn) { return this.send(turn, "retried"); }
  regenerate(turn) { return this.send(turn, "regenerated"); }
  copy(turn) { return this.send(turn, "copied"); }
  save(turn) { return this.send(turn, "saved"); }
  stop(turn) { return this.send(turn, "stopped"); }
  undo(turn) { return this.send(turn, "reverted"); }
  rate(turn, value, comment) { return this.send(turn, "rating", { value, ...(comment ? { text: comment } : {}) }); }
  comment(turn, text) { return this.send(turn, "comment", { text }); }
  wanted(turn, text) { return this.send(turn, "demonstration", { text }); }
  ran(turn, exit_code, output) { return this.send(turn, "executed", { exit_code, ...(output ? { output } : {}) }); }

  /** Puts an event into the queue; returns its id. */
  send(turn, kind, more = {}) {
    if (!turn) throw new Error(`afterword: the event ${kind} names no turn: pass the answer's id`);
    const event = { id: `js-${crypto.randomUUID()}`, turn, kind, occurred_at: Date.now() / 1000, ...more };
    if (this.user) event.user = this.user;
    this.events.push(event);
    this.keep();
    this.later(this.wait);
    return event.id;
  }

  /** Takes an event back: from the queue, or at the gateway. */
  async retract(id) {
    const left = this.events.filter((event) => event.id !== id);
    if (left.length < this.events.length) { this.events = left; return this.keep(); }
    const path = `${this.url}/v1/feedback/${encodeURIComponent(id)}`;
    const response = await fetch(path, { method: "DELETE", headers: this.headers() });
    if (!response.ok) throw await failure(response);
  }

  // ---- the queue
  /** Sends what waits. Resolves when the queue is empty or the gateway cannot be reached. */
  flush() {
    this.sending ??= this.drain().finally(() => { this.sending = null; });
    return this.sending;
  }

  async drain() {
    while (this.events.length) {
      const batch = this.events.slice(0, 100);
      let response;
      try {
        response = await fetch(`${this.url}/v1/feedback`, {
          method: "POST", headers: this.headers(), body: JSON.stringify({ events: batch }), keepalive: true,
        });
      } catch {
        return this.later(30000);
      }
      const gone = new Set(batch.map((event) => event.id));
      if (!response.ok) {
        this.onError(await failure(response));
        // all else may be right later: a key, an address, a gateway that is busy or starts anew
        if (![400, 409, 413, 422].includes(response.status)) return this.later(response.status < 500 ? 60000 : 10000);
      } else {
        const { results = [] } = await response.json();
        for (const one of results) if (one.status === "rejected") this.onError(new Error(`${one.id}: ${one.why}`));
      }
      this.events = this.events.filter((event) => !gone.has(event.id));
      this.keep();
    }
  }

  /** The page is left: without a key a beacon carries what waits; else a request that outlives the page. */
  leave() {
    if (!this.events.length) return;
    const body = JSON.stringify({ events: this.events.slice(0, 100) });
    if (!this.key && navigator.sendBeacon) {
      navigator.sendBeacon(`${this.url}/v1/feedback`, new Blob([body], { type: "text/plain" }));
    } else {
      fetch(`${this.url}/v1/feedback`, { method: "POST", headers: this.headers(), body, keepalive: true }).catch(() => {});
    }
    // the queue is kept: ids make a second delivery a duplicate that counts once
  }

  later(wait) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.flush(), wait);
    this.timer?.unref?.();
  }

  load() {
    try { return JSON.parse(this.storage?.getItem(this.slot) ?? "[]"); } catch { return []; }
  }

  keep() {
    try { this.storage?.setItem(this.slot, JSON.stringify(this.events.slice(-1000))); } catch { /* full or forbidden */ }
  }
}

async function failure(response) {
  let said = response.statusText;
  try { said = (await response.json()).error.message; } catch { /* no JSON */ }
  return Object.assign(new Error(said), { status: response.status });
}
