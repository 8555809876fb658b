"use strict";
const get = (id) => document.getElementById(id);
const drawn = JSON.parse(get("data").textContent);
let rows = drawn, at = 0;

function show(i) {
  if (!rows.length) return;
  at = Math.max(0, Math.min(rows.length - 1, i));
  get("shown").innerHTML = rows[at].html; // escaped where it was written
  get("jump").value = rows[at].latent;
  get("place").textContent = `Latent ${rows[at].latent}, ${at + 1} of ${rows.length}`;
  get("previous").disabled = at === 0;
  get("next").disabled = at === rows.length - 1;
  history.replaceState(null, "", "#" + rows[at].latent);
}

function find(number) {
  const i = rows.findIndex((r) => String(r.latent) === number.trim());
  if (i >= 0) show(i);
  else get("place").textContent = `No latent ${number.trim()} here`;
}

get("previous").onclick = () => show(at - 1);
get("next").onclick = () => show(at + 1);
get("jump").onchange = (e) => find(e.target.value);
get("order").onchange = (e) => {
  const by = e.target.value, current = rows[at];
  rows = by ? [...drawn].sort((a, b) => (by === "latent" ? a[by] - b[by] : b[by] - a[by])) : drawn;
  show(rows.indexOf(current));
};
document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || ["INPUT", "SELECT"].includes(e.target.tagName)) return;
  const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: rows.length - 1 };
  if (e.key in moves) show(moves[e.key]);
  else if (e.key === "/") get("jump").select();
  else return;
  e.preventDefault();
});
window.addEventListener("hashchange", () => find(location.hash.slice(1)));
show(Math.max(0, rows.findIndex((r) => "#" + r.latent === location.hash)));
