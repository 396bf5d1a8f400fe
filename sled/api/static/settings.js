// What the user has chosen; kept by the browser, if it keeps anything.

const NAME = "sled-chat";
export const DEFAULTS = { temperature: 0.7, top_p: 1, max_tokens: 400, seed: "", system: "" };

export function load() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(NAME) ?? "{}") };
  } catch {
    return { ...DEFAULTS };
  }
}

export function save(values) {
  try {
    localStorage.setItem(NAME, JSON.stringify(values));
  } catch { /* private windows keep nothing */ }
}

/** Ties the dialog's fields to the values; `values` changes in place. */
export function bind(dialog, values) {
  const fields = Object.keys(DEFAULTS).map((name) => [name, dialog.querySelector(`#${name}`)]);
  const show = () => {
    for (const [name, field] of fields) {
      field.value = values[name];
      const out = dialog.querySelector(`#${name}-out`);
      if (out) out.textContent = String(values[name]);
    }
  };
  for (const [name, field] of fields) {
    field.addEventListener("input", () => {
      if (!field.checkValidity() || (field.type === "number" && !field.value)) return;
      values[name] = field.type === "range" || field.type === "number" ? Number(field.value) : field.value;
      const out = dialog.querySelector(`#${name}-out`);
      if (out) out.textContent = field.value;
      save(values);
    });
  }
  dialog.querySelector("#defaults").addEventListener("click", () => {
    Object.assign(values, DEFAULTS);
    save(values);
    show();
  });
  dialog.addEventListener("close", show); // what was not valid goes back to what holds
  show();
}
