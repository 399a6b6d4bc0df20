import { StreamError } from "./error.js";
import type { StoredRecord } from "./raw.js";

const FIXED = 21;

/** The records of a packed page. Their data shares the page's memory. */
export function unpack(page: Uint8Array): StoredRecord[] {
  const view = new DataView(page.buffer, page.byteOffset, page.byteLength);
  const text = new TextDecoder("utf-8", { fatal: true });
  const records: StoredRecord[] = [];
  for (let at = 0; at < page.length; ) {
    const end = at + 4 + (at + 4 <= page.length ? view.getUint32(at) : 0);
    if (end > page.length || end < at + 4 + FIXED) throw broken();
    const keyLength = view.getUint16(at + 21);
    const headersLength = view.getUint16(at + 23);
    const key = at + 25;
    const headers = key + keyLength;
    const data = headers + headersLength;
    if (data > end) throw broken();
    records.push({
      sequence: Number(view.getBigUint64(at + 4)),
      time: new Date(Number(view.getBigInt64(at + 12))),
      deleted: (view.getUint8(at + 20) & 1) !== 0,
      key: text.decode(page.subarray(key, headers)),
      headers: lines(text.decode(page.subarray(headers, data))),
      data: page.subarray(data, end),
    });
    at = end;
  }
  return records;
}

function lines(block: string): [string, string][] {
  return block.split("\r\n").filter((line) => line !== "").map((line) => {
    const colon = line.indexOf(": ");
    if (colon < 0) throw broken();
    return [line.slice(0, colon), line.slice(colon + 2)];
  });
}

function broken(): StreamError {
  return new StreamError("internal", "A page of records isn't in its form.");
}
