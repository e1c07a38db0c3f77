"use strict";
// What an agent says only ever becomes text here, never markup.
const facts = document.getElementById("facts");
const list = document.getElementById("events");
const lost = document.getElementById("lost");
let most = 500; // events that are shown
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
list.addEventListener("click", async (e) => {
  const before = e.target.dataset && e.target.dataset.before;
  if (!before) return;
  e.preventDefault();
  try {
    const answer = await fetch("/past?before=" + before, { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.status);
    const made = new DOMParser().parseFromString("<ol>" + await answer.text() + "</ol>", "text/html").querySelector("ol");
    const below = list.scrollHeight - list.scrollTop;
    most += made.children.length;
    e.target.parentElement.replaceWith(...made.childNodes);
    list.scrollTop = list.scrollHeight - below;
    list.focus();
  } catch { location.href = e.target.href; }
});
if (document.body.dataset.live === "true") {
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
const text = document.getElementById("text");
if (text) text.addEventListener("keydown", (e) => {
  if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) text.form.requestSubmit();
});
document.addEventListener("submit", async (e) => {
  const form = e.target;
  const done = { message: "Sent.", stop: "It was told to stop.", retry: "It tries again." }[form.id];
  if (!done) return;
  e.preventDefault();
  if (!await post(form, done)) return;
  if (form.id === "message") form.reset();
  if (form.id === "retry") look();
});
