"use strict";
// The panel of devaipod in the forge's pages of issues and pull requests. What the service
// tells only ever becomes text here, never markup; where it does not answer there is no panel.
(() => {
  const script = document.currentScript;
  const side = document.querySelector(".issue-content-right");
  if (!script || !side) return;
  const { service, forge, user, repo, number } = script.dataset;
  if (location.origin !== new URL(forge).origin) return; // by another name it is another origin, which gets no answer
  const where = "?" + new URLSearchParams({ repo, number });
  const kept = "devaipod.panel";

  const host = document.createElement("div");
  host.id = "devaipod-panel";
  const root = host.attachShadow({ mode: "open" });
  const style = new CSSStyleSheet(); // no style-src of a policy is about it
  style.replaceSync(`
    :host { display: block; margin-bottom: 1em; padding-bottom: 1em; border-bottom: 1px solid var(--color-secondary, #ccc); color: var(--color-text, #333); }
    h2 { margin: 0 0 .5em; font-size: 1em; display: flex; gap: .5em; align-items: center; }
    [hidden] { display: none !important; }
    .state { margin-left: auto; padding: .1em .6em; border-radius: 1em; font-weight: normal; color: var(--color-primary-contrast, #fff); background: var(--color-primary, #4183c4); }
    .state.asking, .state.failed, .state.refused { background: var(--color-red, #b33); color: #fff; }
    dl { margin: 0; display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .2em .7em; }
    dt { color: var(--color-text-light-1, #666); }
    dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; max-height: 12em; overflow-y: auto; }
    dd.alert { font-weight: 600; }
    a { color: var(--color-primary, #4183c4); }
    code { font-family: var(--fonts-monospace, monospace); font-size: .9em; }
    button { font: inherit; padding: .3em .8em; margin: .4em .4em 0 0; border: 1px solid var(--color-secondary, #ccc); border-radius: 4px; color: inherit; background: var(--color-button, transparent); cursor: pointer; text-align: left; overflow-wrap: anywhere; }
    button:hover { background: var(--color-hover, #0001); }
    button:disabled { opacity: .5; cursor: default; }
    textarea, input { box-sizing: border-box; width: 100%; margin-top: .6em; font: inherit; color: var(--color-input-text, inherit); background: var(--color-input-background, transparent); border: 1px solid var(--color-input-border, #ccc); border-radius: 4px; }
    button.out { border: 0; padding: 0; font-size: .85em; color: var(--color-text-light-1, #666); }
    p { margin: .4em 0 0; overflow-wrap: anywhere; }`);
  root.adoptedStyleSheets = [style];

  function make(tag, text, kind) {
    const e = document.createElement(tag);
    if (text) e.textContent = text;
    if (kind) e.className = kind;
    return e;
  }
  function button(text, press) {
    const b = make("button", text);
    b.type = "button";
    b.addEventListener("click", press);
    return b;
  }
  const state = make("span", "", "state");
  const head = make("h2", "Agent");
  head.append(state);
  const body = make("div"), acts = make("div"), said = make("p");
  said.setAttribute("role", "status");
  const message = make("form"), text = make("textarea"), send = make("button", "Send");
  text.rows = 2;
  text.setAttribute("aria-label", "Message to the agent");
  text.placeholder = "Message to the agent";
  message.append(text, send);
  const budget = make("form"), amount = make("input");
  amount.setAttribute("aria-label", "Budget in all");
  amount.placeholder = "in all: 10, 5M tokens or 2h";
  budget.append(amount, make("button", "Raise the budget"));
  budget.hidden = message.hidden = true;
  message.addEventListener("submit", (e) => {
    e.preventDefault();
    if (text.value.trim()) act({ act: "message", text: text.value }, "Sent, as a comment of yours.").then((done) => { if (done) text.value = ""; });
  });
  budget.addEventListener("submit", (e) => {
    e.preventDefault();
    if (amount.value.trim()) act({ act: "budget", text: amount.value }, "Raised, by a comment of yours.").then((done) => { if (done) amount.value = ""; });
  });
  const out = button("Log out", () => { keep(""); look(); });
  out.className = "out";
  root.append(head, body, acts, budget, message, said, out);

  let shown = "", pressed = ""; // what is drawn, and which buttons
  let acted = 0; // when something was done last

  // The token is for the account that is logged in at the forge: another one's is dropped.
  function token() {
    try {
      const has = JSON.parse(localStorage.getItem(kept));
      if (has && has.user === user) return has.token;
      if (has) localStorage.removeItem(kept);
    } catch { /* none is kept */ }
    return "";
  }
  function keep(value) {
    try {
      if (value) localStorage.setItem(kept, JSON.stringify({ user, token: value }));
      else localStorage.removeItem(kept);
    } catch { said.textContent = "This browser keeps no login."; }
  }

  function call(path, body) {
    const headers = { Authorization: "Bearer " + token() };
    if (body) headers["Content-Type"] = "application/json";
    return fetch(service + path + where, {
      method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body),
      cache: "no-store", credentials: "omit", referrerPolicy: "no-referrer", signal: AbortSignal.timeout(20000),
    });
  }

  async function act(what, done) {
    for (const b of root.querySelectorAll("button")) b.disabled = true;
    try {
      const answer = await call("/act", what);
      said.textContent = answer.ok ? done : await answer.text();
      if (answer.ok) acted = Date.now();
      return answer.ok;
    } catch {
      said.textContent = "The service does not answer.";
      return false;
    } finally {
      for (const b of root.querySelectorAll("button")) b.disabled = false;
      shown = "";
      look();
    }
  }

  function logIn() {
    const popup = window.open(service + "/login", "_blank", "popup,width=640,height=720");
    if (!popup) { said.textContent = "This browser kept the login's window from opening."; return; }
    window.addEventListener("message", function hear(e) {
      if (e.source !== popup || e.origin !== service || !e.data || !e.data.devaipod) return;
      window.removeEventListener("message", hear);
      const got = e.data.devaipod;
      if (got.user !== user) { said.textContent = "That was another account than this page's."; return; }
      said.textContent = "";
      keep(got.token);
      look();
    });
  }

  function place() {
    if (!host.isConnected) side.prepend(host); // once more would take the focus from what is in it
  }

  function show(s) {
    state.textContent = s.state;
    state.className = s.state && "state " + s.state;
    const list = make("dl");
    for (const f of s.facts || []) {
      const dd = make("dd", "", f.alert ? "alert" : "");
      if (f.link && /^https?:\/\//.test(f.link)) {
        const a = make("a", f.lines.join("\n"));
        a.href = f.link;
        a.rel = "noopener noreferrer";
        dd.append(a);
      } else if (f.name === "ssh") {
        dd.append(make("code", f.lines.join("\n")));
      } else {
        dd.textContent = f.lines.join("\n");
      }
      dd.dataset.fact = f.name;
      list.append(make("dt", f.name), dd);
    }
    body.replaceChildren(list);
    const may = new Set(s.acts || []), answers = make("div"), buttons = make("div");
    if (may.has("answer")) {
      answers.append(...s.choices.map((c, i) => button(i + 1 + ". " + c, () => act({ act: "answer", text: String(i + 1), ask: s.ask }, "Answered."))));
    } else if (s.choices) {
      body.append(...s.choices.map((c, i) => make("p", i + 1 + ". " + c)));
    }
    if (may.has("start")) {
      for (const name of ["", ...(s.agents || [])]) buttons.append(button(name ? "Start " + name : "Start an agent", () => act({ act: "start", text: name }, "It starts; the label is on, in your name.")));
    }
    if (may.has("retry")) buttons.append(button("Try again", () => act({ act: "retry" }, "It tries again.")));
    if (may.has("stop")) buttons.append(button("Stop", () => act({ act: "stop" }, "It stops; its work is kept.")));
    const key = JSON.stringify([s.acts, s.agents, s.choices, s.ask]);
    if (key !== pressed) acts.replaceChildren(answers, buttons); // else they stay, and with them what has the focus
    pressed = key;
    message.hidden = !may.has("message");
    budget.hidden = !may.has("budget");
    out.hidden = false;
    place();
  }

  function askIn() {
    state.textContent = "";
    state.className = "";
    body.replaceChildren();
    if (pressed !== "login") acts.replaceChildren(button("Log in to see it", logIn));
    pressed = "login";
    budget.hidden = message.hidden = out.hidden = true;
    place();
  }

  let timer = 0, failed = 0, turn = 0;
  async function look() {
    clearTimeout(timer);
    const mine = ++turn;
    let next = 3000;
    try {
      const answer = await call("/look");
      const told = answer.ok ? await answer.text() : "";
      if (mine !== turn) return; // another look was begun
      failed = 0;
      if (answer.status === 401) {
        keep("");
        askIn();
        next = 60000;
      } else if (answer.status === 404) {
        host.remove();
        next = 15000;
      } else if (!answer.ok) {
        throw new Error(answer.status);
      } else if (told !== shown || !host.isConnected) {
        show(JSON.parse(told));
      }
      if (answer.ok && !state.textContent && Date.now() - acted > 60000) next = 15000; // no agent
      shown = told;
    } catch {
      if (mine !== turn) return;
      host.remove();
      next = Math.min(600000, 5000 * 2 ** failed++);
    }
    timer = setTimeout(() => { if (!document.hidden) look(); }, next);
  }
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
  look();
})();
