"use strict";
// What an agent says only ever becomes text here, never markup.
const facts = document.getElementById("facts");
const list = document.getElementById("events");
const lost = document.getElementById("lost");
const most = 500;
let looking = false;

async function look() {
  if (looking) return;
  looking = true;
  try {
    const answer = await fetch("/facts", { cache: "no-store" });
    if (answer.status === 401 || answer.status === 404) { location.reload(); return; }
    if (!answer.ok) throw new Error(answer.status);
    const made = new DOMParser().parseFromString(await answer.text(), "text/html").body;
    if (made.innerHTML !== facts.innerHTML) facts.replaceChildren(...made.childNodes);
    lost.hidden = true;
  } catch { lost.hidden = false; } finally { looking = false; }
}

function show(event) {
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  const item = document.createElement("li");
  item.className = event.type;
  const time = document.createElement("time");
  time.dateTime = event.time;
  time.textContent = new Date(event.time).toLocaleTimeString();
  const kind = document.createElement("b");
  kind.textContent = event.type;
  const text = document.createElement("span");
  text.textContent = event.text;
  item.append(time, " ", kind, " ", text);
  list.append(item);
  while (list.children.length > most) list.firstElementChild.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

list.scrollTop = list.scrollHeight;
if (document.body.dataset.runs === "true") {
  let soon = 0;
  const source = new EventSource("/events?after=" + document.body.dataset.last);
  source.onmessage = (m) => {
    show(JSON.parse(m.data));
    clearTimeout(soon);
    soon = setTimeout(look, 300);
  };
}
setInterval(() => { if (!document.hidden) look(); }, 5000);

// Forms work without this; with it the page stays where it is.
const said = document.getElementById("said");
async function post(form, done) {
  try {
    const answer = await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)) });
    if (!answer.ok) throw new Error(await answer.text());
    said.textContent = done;
    return true;
  } catch (e) { said.textContent = e.message; return false; }
}
const message = document.getElementById("message");
if (message) {
  message.addEventListener("submit", async (e) => {
    if (e.submitter && e.submitter.getAttribute("form") === "stop") return;
    e.preventDefault();
    if (await post(message, "Sent.")) message.reset();
  });
  document.getElementById("text").addEventListener("keydown", (e) => {
    if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) message.requestSubmit();
  });
  const stop = document.getElementById("stop");
  stop.addEventListener("submit", (e) => { e.preventDefault(); post(stop, "It was told to stop."); });
}
