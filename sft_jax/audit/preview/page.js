// Draws, searches, filters and pages the examples in the element #data, which are JSON (examples.py says of which form).
// Texts of examples become text nodes only, never markup.

const examples = JSON.parse(document.getElementById("data").textContent).examples;
const view = { query: "", kind: "", sort: "file", page: 0, size: 10, ids: null, boundaries: false };
const texts = new Map(); // of examples: {text, low, found}, made when they are first needed
let shown = examples;

function textOf(example) {
  if (!texts.has(example)) {
    const text = example.pieces.join("");
    const low = text.toLowerCase();
    texts.set(example, { text, low, found: `${example.id}\n${example.group}\n${example.source}\n${example.note}\n`.toLowerCase() + low });
  }
  return texts.get(example);
}

const ORDERS = {
  longest: (a, b) => b.tokens - a.tokens,
  shortest: (a, b) => a.tokens - b.tokens,
  most: (a, b) => b.trained - a.trained,
  least: (a, b) => a.trained - b.trained,
};

function select() {
  const query = view.query.toLowerCase();
  shown = examples.filter(
    (example) =>
      (!view.kind || example.kind === view.kind) &&
      (!view.ids || view.ids.has(example.id)) &&
      (!query || textOf(example).found.includes(query)),
  );
  if (view.sort in ORDERS) shown = shown.slice().sort(ORDERS[view.sort]);
  view.page = 0;
  draw();
}

function* unrolled(runs) {
  for (const [count, value] of runs) for (let i = 0; i < count; i++) yield value;
}

// [start, end) of every place where the query stands; none if lower case has another length (as of İ).
function hits(example) {
  const { text, low } = textOf(example);
  const query = view.query.toLowerCase();
  const found = [];
  if (!query || low.length !== text.length) return found;
  for (let i = low.indexOf(query); i >= 0; i = low.indexOf(query, i + query.length)) found.push([i, i + query.length]);
  return found;
}

function tokenElement(example, piece, number, weight, message, hit) {
  const token = element("span", { className: "token" });
  if (weight > 0) {
    token.classList.add("on");
    token.style.setProperty("--w", Math.min(weight, 1));
  }
  if (hit) token.classList.add("hit");
  piece.split(/(\n)/).forEach((part) => {
    if (part === "\n" && weight > 0) token.append(element("span", { className: "mark", textContent: "⏎" }));
    token.append(part);
  });
  const role = message >= 0 ? example.roles[message] : "chat template";
  const id = example.ids.length ? ` · id ${[].concat(example.ids[number]).join(", ")}` : "";
  const where = message >= 0 ? `${role} · message ${message + 1} of ${example.roles.length}` : role;
  token.tip = example.ids.length ? `${where}\nweight ${weight}${id}` : where;
  return token;
}

function tokenList(example) {
  const box = element("div", { className: "tokens", tabIndex: 0 });
  const weights = unrolled(example.weights), messages = unrolled(example.messages), found = hits(example);
  let before = null, message = null, start = 0, next = 0;
  example.pieces.forEach((piece, number) => {
    const of = messages.next().value, end = start + piece.length;
    if (of !== before) {
      message = element("span", { className: of < 0 ? "message none" : "message" });
      if (of >= 0) message.dataset.label = example.roles[of];
      box.append(message);
      before = of;
    }
    while (next < found.length && found[next][1] <= start) next++;
    const hit = next < found.length && found[next][0] < end && piece.length > 0;
    message.append(tokenElement(example, piece, number, weights.next().value, of, hit));
    start = end;
  });
  return box;
}

function exampleCard(example) {
  const facts = [];
  if (example.tokens) facts.push(`${example.tokens.toLocaleString("en")} tokens`, `${example.trained.toLocaleString("en")} trained`);
  if (example.weight !== 1) facts.push(`weight ${example.weight}`);
  if (example.group) facts.push(`group ${example.group}`);
  if (example.source) facts.push(`source ${example.source}`);
  const header = element("header", {}, element("a", { href: `#row=${encodeURIComponent(example.id)}`, textContent: example.id }));
  if (example.kind !== "trained") {
    const style = example.kind === "dropped" ? "chip warning" : "chip info";
    header.append(element("span", { className: style, textContent: example.kind }));
  }
  facts.forEach((fact) => header.append(element("span", { textContent: fact })));
  const card = element("article", { className: "example" }, header);
  if (example.note) card.append(element("p", { className: "note", textContent: example.note }));
  const tokens = tokenList(example);
  card.append(tokens);
  requestAnimationFrame(() => {
    if (tokens.scrollHeight <= tokens.clientHeight + 1) return;
    const more = element("button", { className: "plain", textContent: "Show all of it" });
    more.onclick = () => {
      more.textContent = card.classList.toggle("whole") ? "Show less" : "Show all of it";
    };
    card.append(element("footer", {}, more));
  });
  return card;
}

function draw() {
  drawPage(view, shown, exampleCard, "examples", "No example on this page is like that.");
  at("list").classList.toggle("boundaries", view.boundaries);
  at("only").hidden = !view.ids;
  if (view.ids) at("only-text").textContent = `Only ${[...view.ids].join(", ")}`;
}

function showOnly(ids) {
  Object.assign(view, { ids: ids && new Set(ids), query: "", kind: "" });
  at("search").value = "";
  at("kind").value = "";
  select();
}

function followHash() {
  const found = /^#row=(.+)$/.exec(location.hash);
  if (!found) return;
  showOnly(decodeURIComponent(found[1]).split("\n"));
  at("examples").scrollIntoView();
}

at("kind").onchange = (event) => { view.kind = event.target.value; select(); };
at("sort").onchange = (event) => { view.sort = event.target.value; select(); };
at("boundaries").onchange = (event) => { view.boundaries = event.target.checked; draw(); };
at("clear").onclick = () => { history.replaceState(null, "", "#examples"); showOnly(null); };
listen(view, select, draw, (target) => at("list").contains(target));
at("theme").onclick = () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
};

const tip = element("div", { className: "tip", hidden: true });
document.body.append(tip);
let lit = null;
function point(event) {
  const token = event.target.closest ? event.target.closest(".token") : null;
  const message = token && token.parentNode;
  if (lit !== message) {
    if (lit) lit.classList.remove("lit");
    if (message) message.classList.add("lit");
    lit = message;
  }
  tip.hidden = !token;
  if (!token) return;
  tip.textContent = token.tip;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - box.width - 6))}px`;
  tip.style.top = `${event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 10 : event.clientY + 18}px`;
}
at("list").addEventListener("pointerover", point);
at("list").addEventListener("pointermove", point);
at("list").addEventListener("pointerleave", () => { tip.hidden = true; if (lit) lit.classList.remove("lit"); lit = null; });

addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
addEventListener("hashchange", followHash);
select();
followHash();
