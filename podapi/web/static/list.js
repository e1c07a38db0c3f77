"use strict";
// The list is made anew by the server every few seconds.
const rows = document.getElementById("rows");
const lost = document.getElementById("lost");
async function look() {
  try {
    const answer = await fetch("/pods/rows", { cache: "no-store" });
    if (answer.status === 401) { location.reload(); return; }
    if (!answer.ok) throw new Error(answer.status);
    const made = new DOMParser().parseFromString(await answer.text(), "text/html").body;
    if (made.innerHTML !== rows.innerHTML) {
      const at = document.activeElement && document.activeElement.getAttribute("href");
      rows.replaceChildren(...made.childNodes);
      if (at) for (const a of rows.querySelectorAll("a")) if (a.getAttribute("href") === at) a.focus();
    }
    lost.hidden = true;
  } catch { lost.hidden = false; }
}
setInterval(() => { if (!document.hidden) look(); }, 3000);
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
