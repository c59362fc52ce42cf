/** Options of a client. */
export interface Options {
  /** Address of the gateway, with or without /v1; empty for the page's own. */
  url?: string;
  /** API key, once keys exist. In a web page anybody can read it: give it the scope `feedback` or `infer` alone. */
  key?: string;
  user?: string;
  conversation?: string;
  model?: string;
  /** Where events wait; `null` keeps them in memory. Default: localStorage where there is one. */
  storage?: Pick<Storage, "getItem" | "setItem"> | null;
  /** Milliseconds that events wait for others. */
  wait?: number;
  onError?: (error: Error & { status?: number }) => void;
}
export interface Message { role: string; content: unknown; [more: string]: unknown }
export interface Answer { id: string; text: string; raw?: unknown }
export type EventId = string;
export class Afterword {
  constructor(options?: Options);
  /** Asks for an answer; with `onText` it is streamed. A stopped stream (`signal`) is feedback of kind `stopped`. */
  chat(messages: Message[], options?: {
    onText?: (piece: string, soFar: string) => void; signal?: AbortSignal; [more: string]: unknown;
  }): Promise<Answer>;
  accept(turn: string): EventId;
  /** The user changed the answer from `before` to `after`. */
  edit(turn: string, before: string, after: string): EventId;
  retry(turn: string): EventId;
  regenerate(turn: string): EventId;
  copy(turn: string): EventId;
  save(turn: string): EventId;
  stop(turn: string): EventId;
  undo(turn: string): EventId;
  /** `value` from -1 to 1. */
  rate(turn: string, value: number, comment?: string): EventId;
  comment(turn: string, text: string): EventId;
  /** The answer that the user wanted. */
  wanted(turn: string, text: string): EventId;
  /** The answer's code was run. */
  ran(turn: string, exitCode: number, output?: string): EventId;
  send(turn: string, kind: string, more?: Record<string, unknown>): EventId;
  retract(id: EventId): Promise<void>;
  flush(): Promise<void>;
}
