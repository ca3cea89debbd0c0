"use strict";
// What all pages with a list have in common: elements, a part of the list at a time, and what turns to another part.

const at = (name) => document.getElementById(name);

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// Puts the cards of the part of `shown` that `view` is at into #list; `noun` names what is shown, `none` stands where nothing is.
function drawPage(view, shown, card, noun, none) {
  const pages = Math.max(1, Math.ceil(shown.length / view.size));
  view.page = Math.min(Math.max(view.page, 0), pages - 1);
  const first = view.page * view.size;
  const part = shown.slice(first, first + view.size);
  at("list").replaceChildren(...part.map(card));
  if (!part.length) at("list").append(element("p", { className: "empty card", textContent: none }));
  const count = shown.length.toLocaleString("en");
  const range = part.length ? `${(first + 1).toLocaleString("en")}–${(first + part.length).toLocaleString("en")} of ${count} ${noun}` : `no ${noun}`;
  document.querySelectorAll(".range").forEach((place) => (place.textContent = range));
  document.querySelectorAll(".pages").forEach((place) => (place.textContent = `of ${pages.toLocaleString("en")}`));
  document.querySelectorAll(".page-number").forEach((input) => Object.assign(input, { value: view.page + 1, max: pages }));
  document.querySelectorAll(".previous").forEach((button) => (button.disabled = view.page === 0));
  document.querySelectorAll(".next").forEach((button) => (button.disabled = view.page === pages - 1));
}

// Has the search, the size of a page, its number, buttons and arrow keys change `view`, and the list be made or drawn again.
// Where `keepsArrows` is true of an element, the arrow keys are its own.
function listen(view, select, draw, keepsArrows) {
  const turnTo = (page) => { view.page = page; draw(); };
  document.querySelector(".range").setAttribute("aria-live", "polite"); // one of two that say the same
  let waiting;
  at("search").oninput = (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { view.query = event.target.value; select(); }, 120);
  };
  at("size").onchange = (event) => { view.size = Number(event.target.value); turnTo(0); };
  document.querySelectorAll(".previous").forEach((button) => (button.onclick = () => turnTo(view.page - 1)));
  document.querySelectorAll(".next").forEach((button) => (button.onclick = () => turnTo(view.page + 1)));
  document.querySelectorAll(".page-number").forEach((input) => {
    input.onchange = () => turnTo((Number(input.value) || 1) - 1);
  });
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^(input|select|textarea)$/i.test(event.target.tagName)) return;
    if (event.key === "/") { event.preventDefault(); at("search").focus(); }
    if (event.target.closest && keepsArrows(event.target)) return;
    if (event.key === "ArrowRight") turnTo(view.page + 1);
    if (event.key === "ArrowLeft") turnTo(view.page - 1);
  });
}
