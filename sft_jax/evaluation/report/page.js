// Draws, searches, filters and pages the answers in the element #data, which are JSON (rows.py says of which form).
// Texts of data and models become text nodes only, never markup.

const data = JSON.parse(document.getElementById("data").textContent);
const view = { task: 0, query: "", group: "", method: "", right: "", disagree: false, page: 0, size: 10 };
const low = data.texts.map(() => null); // the texts in lower case, made when they are first searched
const MOST_PAIRS = 4e6; // of words that are compared one by one
let shown = [];

const task = () => data.tasks[view.task];

function has(text, query) {
  if (low[text] === null) low[text] = data.texts[text].toLowerCase();
  return low[text].includes(query);
}

function textsOf(row) {
  const prompts = [row.prompt, ...row.answers.map((answer) => answer.prompt || [])].flat();
  return [row.reference, ...row.answers.map((answer) => answer.answer), ...prompts.map(([, text]) => text)];
}

function matches(row, query) {
  if (view.disagree && !row.disagree) return false;
  if (view.group && row.group !== view.group) return false;
  if (view.right) {
    const fit = row.answers.map((answer) => answer.right === (view.right === "right"));
    if (view.method === "all" ? !fit.every(Boolean) : view.method ? !fit[Number(view.method)] : !fit.some(Boolean)) return false;
  }
  return !query || `${row.id}\n${row.group}`.toLowerCase().includes(query) || textsOf(row).some((text) => has(text, query));
}

function select() {
  const query = view.query.toLowerCase();
  shown = data.tasks.length ? task().rows.filter((row) => matches(row, query)) : [];
  view.page = 0;
  draw();
}

const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

// The text, with what cannot be seen or turns the direction of text shown as code points.
function visible(text) {
  const parts = [];
  let start = 0;
  for (const found of text.matchAll(UNSEEN)) {
    const code = found[0].charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
    parts.push(text.slice(start, found.index), element("span", { className: "mark", textContent: `U+${code}` }));
    start = found.index + 1;
  }
  return [...parts, text.slice(start)];
}

// Words, signs and white space, in order.
const pieces = (text) => text.match(/\s+|[\p{L}\p{N}\p{M}_]+|[^\s\p{L}\p{N}\p{M}_]/gu) || [];
const words = (text) => pieces(text).filter((piece) => piece.trim());

// For each word of `answer` its place in `reference` along a longest common subsequence, or -1.
function alignment(answer, reference) {
  const found = new Array(answer.length).fill(-1);
  let start = 0, endA = answer.length, endB = reference.length;
  while (start < endA && start < endB && answer[start] === reference[start]) found[start] = start++;
  while (endA > start && endB > start && answer[endA - 1] === reference[endB - 1]) found[--endA] = --endB;
  const rows = endA - start, columns = endB - start;
  if (rows * columns > MOST_PAIRS) return null;
  const wide = columns + 1, longest = new Uint32Array((rows + 1) * wide);
  for (let i = rows - 1; i >= 0; i--) {
    for (let j = columns - 1; j >= 0; j--) {
      longest[i * wide + j] = answer[start + i] === reference[start + j]
        ? longest[(i + 1) * wide + j + 1] + 1
        : Math.max(longest[(i + 1) * wide + j], longest[i * wide + j + 1]);
    }
  }
  for (let i = 0, j = 0; i < rows && j < columns; ) {
    if (answer[start + i] === reference[start + j]) found[start + i++] = start + j++;
    else if (longest[(i + 1) * wide + j] >= longest[i * wide + j + 1]) i++;
    else j++;
  }
  return found;
}

function gap(left) {
  return element("span", { className: "gap", textContent: "▾", title: `left out: ${left.slice(0, 30).join(" ")}` });
}

// The answer, with the words marked that the reference does not have there, and a sign where it has others.
function compared(answer, reference) {
  const wanted = words(reference), given = words(answer);
  const places = alignment(given, wanted);
  const known = places === null ? new Set(wanted) : null; // too long: only whether the word occurs
  const parts = [];
  let number = 0, expected = 0, replaced = false;
  for (const piece of pieces(answer)) {
    if (!piece.trim()) {
      parts.push(...visible(piece));
      continue;
    }
    const place = known ? (known.has(piece) ? 0 : -1) : places[number];
    number++;
    if (place < 0) {
      parts.push(element("span", { className: "differs" }, ...visible(piece)));
      replaced = true;
      continue;
    }
    if (!known && place > expected && !replaced) parts.push(gap(wanted.slice(expected, place)));
    expected = place + 1;
    replaced = false;
    parts.push(...visible(piece));
  }
  if (!known && expected < wanted.length && !replaced) parts.push(gap(wanted.slice(expected)));
  return parts;
}

function textBox(label, children) {
  const box = element("div", { className: "text", tabIndex: 0, dir: "auto" }, ...children);
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", label);
  if (!box.textContent) box.append(element("span", { className: "nothing", textContent: "empty" }));
  return box;
}

function promptParts(prompt) {
  return prompt.flatMap(([role, text]) => [
    ...(role ? [element("span", { className: "role", textContent: role })] : []),
    element("span", { className: "said", dir: "auto" }, ...visible(data.texts[text])),
  ]);
}

function folded(label, make) {
  const details = element("details", {}, element("summary", { textContent: label }));
  details.addEventListener("toggle", () => { if (details.open && details.childElementCount === 1) details.append(make()); });
  return details;
}

function answerCell(answer, method, reference) {
  const heading = element("h4", {}, ...visible(method.name));
  if (answer.right !== null) {
    heading.append(element("span", { className: answer.right ? "chip good" : "chip error", textContent: answer.right ? "right" : "wrong" }));
  }
  if (answer.value !== null) heading.append(element("small", { textContent: `${task().metric} ${answer.value}` }));
  if (answer.finish && answer.finish !== "stop") heading.append(element("span", { className: "chip warning" }, ...visible(answer.finish)));
  const cell = element("div", { className: "cell" }, heading);
  cell.style.setProperty("--method", method.color);
  cell.append(textBox(`Answer of ${method.name}`, compared(data.texts[answer.answer], reference)));
  if (answer.prompt) cell.append(folded("its own prompt", () => textBox(`Prompt of ${method.name}`, promptParts(answer.prompt))));
  cell.append(folded("outcome", () => textBox(`Outcome of ${method.name}`, visible(data.texts[answer.outcome]))));
  return cell;
}

function rowCard(row) {
  const reference = data.texts[row.reference];
  const header = element("header", {}, element("b", {}, ...visible(row.id)));
  if (row.group) header.append(element("span", {}, "group ", ...visible(row.group)));
  if (row.disagree) header.append(element("span", { className: "chip info", textContent: "methods disagree" }));
  const prompt = element("div", { className: "cell" }, element("h4", { textContent: "Prompt" }), textBox("Prompt", promptParts(row.prompt)));
  const wanted = element("div", { className: "cell reference" }, element("h4", { textContent: "Reference" }), textBox("Reference", visible(reference)));
  const answers = row.answers.map((answer, number) => answerCell(answer, data.methods[task().methods[number]], reference));
  return element(
    "article", { className: "row" }, header,
    element("div", { className: "given" }, prompt, wanted), element("div", { className: "answers" }, ...answers),
  );
}

const draw = () => drawPage(view, shown, rowCard, "rows", "No row is like that.");

const option = (value, text) => element("option", { value, textContent: text });

function openTask(number) {
  Object.assign(view, { task: number, group: "", method: "", right: "" });
  const { note, judges, groups, methods } = task();
  at("note").textContent = note;
  at("group").replaceChildren(option("", "all groups"), ...groups.map((group) => option(group, group)));
  at("group").hidden = !groups.length;
  const names = methods.map((method, place) => option(String(place), data.methods[method].name));
  at("method").replaceChildren(option("", "any method"), option("all", "every method"), ...names);
  at("right").value = "";
  at("judged").hidden = !judges;
  at("disagree").parentNode.hidden = methods.length < 2;
  at("disagree").checked = view.disagree = view.disagree && methods.length > 1;
  select();
}

for (const name of ["group", "method", "right"]) at(name).onchange = (event) => { view[name] = event.target.value; select(); };
at("task").onchange = (event) => openTask(Number(event.target.value));
at("disagree").onchange = (event) => { view.disagree = event.target.checked; select(); };
listen(view, select, draw, (target) => target.closest(".scrolled, .text")); // there the arrows scroll

at("task").append(...data.tasks.map(({ name }, number) => option(String(number), name)));
at("task").hidden = data.tasks.length < 2;
if (data.tasks.length) openTask(0);
else at("answers").hidden = true;
