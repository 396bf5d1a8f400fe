// POSTs a JSON body and yields the events of the answer's stream.

/** An answer that is no 200: `status`, `code`, and a line for people. */
export class Refused extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.code = error.code;
  }
}

/** Headers with the bearer token, if there is one. */
export function headers(token) {
  return token ? { authorization: `Bearer ${token}` } : {};
}

/** The error object of an answer, whatever is in its body. */
export async function refusal(response) {
  let error = { message: `the server answered ${response.status}`, code: null };
  try {
    error = (await response.json()).error ?? error;
  } catch { /* no JSON: the status has to do */ }
  return new Refused(response.status, error);
}

/** Events of a POST, one after the other. */
export async function* postEvents(url, body, { token, signal }) {
  const response = await fetch(url, {
    method: "POST", body: JSON.stringify(body), signal,
    headers: { "content-type": "application/json", ...headers(token) },
  });
  if (!response.ok) throw await refusal(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const line = text.slice(0, end);
      text = text.slice(end + 2);
      if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
    }
  }
}
