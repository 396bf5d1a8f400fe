// A little Markdown as DOM nodes: fences, headings, lists, quotes, rules, and inline marks. Never as HTML text.

const FENCE = "```";

/** How much of a text consists of blocks that later text cannot change. */
export function settled(text) {
  let end = text.lastIndexOf("\n\n");
  const fences = text.split("\n").filter((line) => line.startsWith(FENCE)).length;
  if (fences % 2) end = Math.min(end, text.lastIndexOf(`\n${FENCE}`));
  if (end < 0) return 0;
  // A list goes on over an empty line: its numbers would start again.
  return end + 2 <= text.length ? end + 2 : text.length;
}

/** Nodes of a text. */
export function render(text) {
  const out = document.createDocumentFragment();
  const lines = text.split("\n");
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    if (line.startsWith(FENCE)) at = fence(lines, at, out);
    else if (!line.trim()) at += 1;
    else if (/^#{1,6} /.test(line)) { out.append(element("h3", inline(line.replace(/^#+ /, "")))); at += 1; }
    else if (/^(-{3,}|\*{3,})$/.test(line.trim())) { out.append(document.createElement("hr")); at += 1; }
    else if (item(line)) at = list(lines, at, out);
    else if (line.startsWith(">")) at = take(lines, at, (l) => l.startsWith(">"), (got) => out.append(element("blockquote", inline(got.map((l) => l.replace(/^> ?/, "")).join("\n")))));
    else at = take(lines, at, (l) => l.trim() && !l.startsWith(FENCE) && !item(l) && !/^#{1,6} /.test(l), (got) => out.append(element("p", inline(got.join("\n")))));
  }
  return out;
}

function take(lines, at, wanted, give) {
  const got = [];
  do got.push(lines[at++]); while (at < lines.length && wanted(lines[at]));
  give(got);
  return at;
}

function fence(lines, at, out) {
  const got = [];
  for (at += 1; at < lines.length && !lines[at].startsWith(FENCE); at += 1) got.push(lines[at]);
  const code = document.createElement("code");
  code.textContent = got.join("\n");
  out.append(element("pre", code));
  return at + 1;
}

function item(line) {
  return /^ {0,6}([-*+]|\d{1,3}[.)]) /.exec(line);
}

function list(lines, at, out) {
  const ordered = /\d/.test(item(lines[at])[1]);
  const node = document.createElement(ordered ? "ol" : "ul");
  if (ordered) node.start = parseInt(item(lines[at])[1], 10);
  while (at < lines.length) {
    const mark = item(lines[at]);
    if (mark && /\d/.test(mark[1]) !== ordered) break;
    if (mark) {
      const got = [lines[at].slice(mark[0].length)];
      for (at += 1; at < lines.length && lines[at].trim() && !item(lines[at]) && !lines[at].startsWith(FENCE); at += 1) got.push(lines[at].trim());
      node.append(element("li", inline(got.join("\n"))));
    } else if (!lines[at].trim() && at + 1 < lines.length && item(lines[at + 1])) at += 1;
    else break;
  }
  out.append(node);
  return at;
}

function element(name, child) {
  const node = document.createElement(name);
  node.append(child);
  return node;
}

const MARKS = [["`", "code"], ["**", "strong"], ["__", "strong"], ["*", "em"]];

/** Inline marks, looked for from left to right; one without its end is text. */
function inline(text) {
  const out = document.createDocumentFragment();
  let plain = 0;
  for (let at = 0; at < text.length; at += 1) {
    const mark = MARKS.find(([sign]) => text.startsWith(sign, at) && /\S/.test(text[at + sign.length] ?? " "));
    if (!mark) continue;
    const [sign, name] = mark;
    const from = at + sign.length;
    const end = text.indexOf(sign, from + 1);
    if (end < 0 || end - at > 2000) { at = from - 1; continue; }
    out.append(text.slice(plain, at));
    const inner = text.slice(from, end);
    out.append(element(name, name === "code" ? inner : inline(inner)));
    plain = end + sign.length;
    at = plain - 1;
  }
  out.append(text.slice(plain));
  return out;
}
