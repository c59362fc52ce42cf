// The chat page: a client of the public API like any other. Conversations stay in this browser.
"use strict";

const root = document.getElementById("chat");
const at = (id) => document.getElementById(id);
const STORE = "afterword.chat";
const state = { conversations: load(), current: null, running: null, key: sessionStorage.getItem("afterword.key") || "" };

function load() {
  try {
    return JSON.parse(localStorage.getItem(STORE)) || [];
  } catch {
    return [];
  }
}

function save() {
  try {
    localStorage.setItem(STORE, JSON.stringify(state.conversations.slice(0, 100)));
  } catch {
    problem("This browser's storage is full: delete conversations.");
  }
}

function problem(text) {
  at("problem").textContent = text;
  at("problem").hidden = !text;
}

function headers(extra) {
  const found = { "content-type": "application/json", ...extra };
  if (state.key) found.authorization = `Bearer ${state.key}`;
  return found;
}

async function refused(answer) {
  const body = await answer.json().catch(() => ({}));
  if (answer.status === 401 || answer.status === 403) at("key-field").hidden = false;
  return body.error?.message || `the server answered ${answer.status}`;
}

// ---- models

async function models() {
  const answer = await fetch("/v1/models", { headers: headers() }).catch(() => null);
  if (!answer || !answer.ok) {
    problem(answer ? await refused(answer) : "The server cannot be reached. It is tried again by itself.");
    if (!answer || answer.status >= 500) setTimeout(models, 5000); // the model server, or ours, may come back
    return;
  }
  problem("");
  const ids = (await answer.json()).data.map((one) => one.id);
  const name = root.dataset.name;
  ids.sort((a, b) => (a === name ? -1 : b === name ? 1 : a.localeCompare(b)));
  for (const [select, first] of [[at("model"), null], [at("other"), "nothing"]]) {
    const kept = select.value;
    select.replaceChildren(...(first ? [new Option(first, "")] : []), ...ids.map((id) => new Option(id, id)));
    if (ids.includes(kept)) select.value = kept;
  }
}

// ---- conversations: {id, title, rounds: [{ask, answers: [{model, text, turn, rating, done}]}]}

function conversation() {
  if (!state.current) {
    state.current = { id: crypto.randomUUID(), title: "", rounds: [] };
    state.conversations.unshift(state.current);
  }
  return state.current;
}

function history(one, upto, side) {
  const found = [];
  for (const round of one.rounds.slice(0, upto)) {
    const answer = round.answers[side] || round.answers[0];
    found.push({ role: "user", content: round.ask }, { role: "assistant", content: answer.text });
  }
  return found;
}

async function ask(text, replaced) {
  const one = conversation();
  const round = replaced === undefined ? { ask: text, answers: [] } : one.rounds[replaced];
  if (replaced === undefined) one.rounds.push(round);
  else one.rounds.length = replaced + 1;
  one.title ||= text.slice(0, 60);
  const wanted = [at("model").value, at("other").value].filter(Boolean);
  round.answers = wanted.map((model) => ({ model, text: "", turn: null, rating: 0, done: false }));
  const number = one.rounds.indexOf(round);
  state.running = new AbortController();
  running(true);
  draw();
  await Promise.all(round.answers.map((answer, side) => stream(one, number, side, answer)));
  state.running = null;
  running(false);
  save();
  draw();
}

function running(now) {
  at("send").hidden = now;
  at("stop").hidden = !now;
}

async function stream(one, number, side, answer) {
  const round = one.rounds[number];
  const body = {
    model: answer.model, stream: true, metadata: { conversation: side ? `${one.id}-${side}` : one.id },
    messages: [...history(one, number, side), { role: "user", content: round.ask }],
  };
  const before = number ? (one.rounds[number - 1].answers[side] || one.rounds[number - 1].answers[0]).turn : null;
  const extra = before ? { "x-afterword-previous-turn": before } : {};
  try {
    const reply = await fetch("/v1/chat/completions", {
      method: "POST", headers: headers(extra), body: JSON.stringify(body), signal: state.running.signal,
    });
    if (!reply.ok) throw new Error(await refused(reply));
    let rest = "";
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      rest += value;
      const lines = rest.split("\n");
      rest = lines.pop();
      for (const line of lines) piece(line, answer);
      paint(number, side, answer);
    }
  } catch (error) {
    if (error.name === "AbortError") await feedback(answer, { kind: "stopped" });
    else problem(error.message);
  }
  answer.done = true;
}

function piece(line, answer) {
  if (!line.startsWith("data:")) return;
  const data = line.slice(5).trim();
  if (!data || data === "[DONE]") return;
  const chunk = JSON.parse(data);
  if (chunk.error) return problem(chunk.error.message);
  answer.turn = chunk.id || answer.turn;
  answer.text += chunk.choices?.[0]?.delta?.content || "";
}

// ---- feedback

async function feedback(answer, event) {
  if (!answer.turn) return false;
  const reply = await fetch("/v1/feedback", {
    method: "POST", headers: headers(), body: JSON.stringify({ turn: answer.turn, source: "end_user", ...event }),
  });
  if (!reply.ok) problem(await refused(reply));
  return reply.ok;
}

async function rate(answer, value) {
  const next = answer.rating === value ? 0 : value;
  if (await feedback(answer, { kind: "rating", value: next })) answer.rating = next;
  save();
  draw();
}

function ask_for(place, label, text, done) {
  const field = document.createElement("textarea");
  field.value = text;
  field.rows = 4;
  field.setAttribute("aria-label", label);
  const send = button(label, () => field.value.trim() && done(field.value));
  const stop = button("Cancel", draw);
  const box = document.createElement("div");
  box.append(field, send, stop);
  place.replaceChildren(box);
  field.focus();
}

// ---- drawing

function button(text, act, pressed) {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: text });
  if (pressed !== undefined) made.setAttribute("aria-pressed", pressed);
  made.addEventListener("click", act);
  return made;
}

function message(role, label, text) {
  const box = Object.assign(document.createElement("div"), { className: `message ${role}` });
  box.append(Object.assign(document.createElement("small"), { textContent: label }));
  box.append(Object.assign(document.createElement("p"), { textContent: text }));
  return box;
}

function tools(one, number, side, answer) {
  const box = Object.assign(document.createElement("div"), { className: "tools" });
  box.append(
    button("Good", () => rate(answer, 1), answer.rating === 1),
    button("Bad", () => rate(answer, -1), answer.rating === -1),
    button("Comment", () =>
      ask_for(box, "Send the comment", "", async (text) => {
        await feedback(answer, { kind: "comment", text });
        draw();
      })),
    button("Edit", () =>
      ask_for(box, "Save the edited answer", answer.text, async (text) => {
        if (text !== answer.text && (await feedback(answer, { kind: "edited", final_text: text }))) answer.text = text;
        save();
        draw();
      })),
    button("Copy", async () => {
      await navigator.clipboard.writeText(answer.text).catch(() => problem("This browser does not allow copying."));
      await feedback(answer, { kind: "copied" });
    }),
  );
  if (number === one.rounds.length - 1)
    box.append(button("Answer again", async () => {
      await feedback(answer, { kind: "regenerated" });
      ask(one.rounds[number].ask, number);
    }));
  return box;
}

function draw() {
  const one = state.current;
  at("messages").replaceChildren();
  for (const [number, round] of (one?.rounds || []).entries()) {
    at("messages").append(message("user", "you", round.ask));
    const sides = Object.assign(document.createElement("div"), { className: round.answers.length > 1 ? "sides two" : "sides" });
    for (const [side, answer] of round.answers.entries()) {
      const box = message("assistant", answer.model, answer.text || (answer.done ? "(no words)" : "…"));
      box.id = `answer-${number}-${side}`;
      if (answer.done && answer.turn) box.append(tools(one, number, side, answer));
      sides.append(box);
    }
    at("messages").append(sides);
  }
  at("list").replaceChildren(...state.conversations.slice(0, 100).map((other) => {
    const line = document.createElement("li");
    const open = button(other.title || "New conversation", () => {
      state.current = other;
      draw();
    });
    if (other === one) open.setAttribute("aria-current", "true");
    const drop = button("×", () => {
      state.conversations = state.conversations.filter((kept) => kept !== other);
      if (state.current === other) state.current = null;
      save();
      draw();
    });
    drop.className = "drop";
    drop.setAttribute("aria-label", `Delete ${other.title || "the conversation"} from this browser`);
    line.append(open, drop);
    return line;
  }));
}

function paint(number, side, answer) {
  const place = at(`answer-${number}-${side}`);
  if (place) place.querySelector("p").textContent = answer.text || "…";
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("words").value.trim();
  if (!text || state.running) return;
  at("words").value = "";
  problem("");
  ask(text);
});
at("words").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
});
at("stop").addEventListener("click", () => state.running?.abort());
at("new").addEventListener("click", () => {
  state.current = null;
  draw();
  at("words").focus();
});
at("key").value = state.key;
at("key").addEventListener("change", () => {
  state.key = at("key").value.trim();
  sessionStorage.setItem("afterword.key", state.key);
  models();
});
state.current = state.conversations[0] || null;
draw();
if ("needsKey" in root.dataset) at("key-field").hidden = false;
if (state.key || !("needsKey" in root.dataset)) models();
else problem("Enter an API key with the scopes infer and feedback.");
