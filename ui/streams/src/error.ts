/** What the service answers when something fails: the contract's error. */
export class StreamError extends Error {
  constructor(
    readonly code: string,
    message: string,
    readonly mend = "",
    readonly retry = false,
    readonly details: Record<string, unknown> = {},
  ) {
    super(message);
    this.name = "StreamError";
  }

  /** The error of an answer whose status says that there is one. */
  static read(payload: Uint8Array): StreamError {
    try {
      const { code, message, mend, retry, details } = JSON.parse(new TextDecoder().decode(payload));
      return new StreamError(String(code), String(message), mend ?? "", retry ?? false, details ?? {});
    } catch {
      return new StreamError("internal", "The answer of a stream can't be read.");
    }
  }
}
