// What do the vendors' own Node SDKs get from Sluice? Runs all scenarios with one provider and prints their results as JSON.
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const { SLUICE_URL: url, SLUICE_KEY: apiKey, PROVIDER: provider } = process.env;
const openai = new OpenAI({ apiKey, baseURL: `${url}/v1`, maxRetries: 0 });
const claude = new Anthropic({ apiKey, baseURL: url, maxRetries: 0 });

const model = (spec) => `${provider}/demo-d0-${spec}`;
const broken = `${provider}/demo-d20-err10`; // Slow enough that the stream is open when it breaks.
const question = [{ role: "user", content: "How does a sluice work?" }];
const schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };
const png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk";
const pdf = "JVBERi0xLjQK";
const readsPdf = provider !== "cohere";

async function failure(run) {
  try {
    await run();
    return "no error";
  } catch (error) {
    return { kind: error.constructor.name, status: error.status ?? null };
  }
}

async function gather(stream, textOf) {
  let text = "";
  let failed = null;
  try {
    for await (const event of stream) text += textOf(event) ?? "";
  } catch (error) {
    failed = error.constructor.name;
  }
  return { text, failed };
}

const chat = { messages: question, stream_options: undefined };
const chatTools = [{ type: "function", function: { name: "weather", parameters: schema } }];
const chatText = (chunk) => chunk.choices[0]?.delta.content;

const responses = { input: question[0].content };
const responseTools = [{ type: "function", name: "weather", parameters: schema, strict: true }];
function responseText(event) {
  if (event.type === "response.failed") throw new EvalError(event.response.error.message); // To this SDK it is an event.
  return event.type === "response.output_text.delta" ? event.delta : "";
}

const messages = { messages: question, max_tokens: 4096 };
const messageTools = [{ name: "weather", input_schema: schema }];
const messageText = (event) => (event.type === "content_block_delta" ? event.delta.text : "");
const textsOf = (message) => message.content.filter((block) => block.type === "text").map((block) => block.text).join("");

const scenarios = {
  async "chat whole"() {
    const answer = await openai.chat.completions.create({ ...chat, model: model("n5") });
    return { text: answer.choices[0].message.content, end: answer.choices[0].finish_reason, tokens: answer.usage.completion_tokens };
  },
  async "chat stream"() {
    const stream = openai.chat.completions.stream({ ...chat, model: model("n5"), stream_options: { include_usage: true } });
    const answer = await stream.finalChatCompletion();
    return { text: answer.choices[0].message.content, end: answer.choices[0].finish_reason, tokens: answer.usage.completion_tokens };
  },
  async "chat tools"() {
    const asked = { ...chat, model: model("tool"), tools: chatTools };
    const { message } = (await openai.chat.completions.stream(asked).finalChatCompletion()).choices[0];
    const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: "18 degrees" };
    const last = await openai.chat.completions.create({ ...asked, messages: [...question, message, result] });
    return { arguments: JSON.parse(message.tool_calls[0].function.arguments), text: last.choices[0].message.content };
  },
  async "chat schema"() {
    const response_format = { type: "json_schema", json_schema: { name: "report", schema, strict: true } };
    const answer = await openai.chat.completions.parse({ ...chat, model: model(""), response_format });
    return JSON.parse(answer.choices[0].message.content);
  },
  async "chat media"() {
    const content = [
      { type: "text", text: "What is this?" },
      { type: "image_url", image_url: { url: `data:image/png;base64,${png}` } },
      ...(readsPdf ? [{ type: "file", file: { filename: "a.pdf", file_data: `data:application/pdf;base64,${pdf}` } }] : []),
    ];
    const answer = await openai.chat.completions.create({ model: model("n3"), messages: [{ role: "user", content }] });
    return answer.choices[0].message.content;
  },
  "chat error": () => failure(() => openai.chat.completions.create({ ...chat, model: model("e429") })),
  async "chat broken stream"() {
    return gather(await openai.chat.completions.create({ ...chat, model: broken, stream: true }), chatText);
  },

  async "responses whole"() {
    const answer = await openai.responses.create({ ...responses, model: model("n5") });
    return { text: answer.output_text, end: answer.status, tokens: answer.usage.output_tokens };
  },
  async "responses stream"() {
    const answer = await openai.responses.stream({ ...responses, model: model("n5") }).finalResponse();
    return { text: answer.output_text, end: answer.status, tokens: answer.usage.output_tokens };
  },
  async "responses tools"() {
    const asked = { ...responses, model: model("tool"), tools: responseTools };
    const first = await openai.responses.stream(asked).finalResponse();
    const call = first.output.find((item) => item.type === "function_call");
    const result = { type: "function_call_output", call_id: call.call_id, output: "18 degrees" };
    const last = await openai.responses.create({ ...asked, input: [...question, ...first.output, result] });
    return { arguments: JSON.parse(call.arguments), text: last.output_text };
  },
  async "responses schema"() {
    const text = { format: { type: "json_schema", name: "report", schema, strict: true } };
    return JSON.parse((await openai.responses.parse({ ...responses, model: model(""), text })).output_text);
  },
  "responses error": () => failure(() => openai.responses.create({ ...responses, model: model("e429") })),
  async "responses broken stream"() {
    return gather(await openai.responses.create({ ...responses, model: broken, stream: true }), responseText);
  },

  async "messages whole"() {
    const answer = await claude.messages.create({ ...messages, model: model("n5") });
    return { text: textsOf(answer), end: answer.stop_reason, tokens: answer.usage.output_tokens };
  },
  async "messages stream"() {
    const answer = await claude.messages.stream({ ...messages, model: model("n5") }).finalMessage();
    return { text: textsOf(answer), end: answer.stop_reason, tokens: answer.usage.output_tokens };
  },
  async "messages tools"() {
    const asked = { ...messages, model: model("tool"), tools: messageTools };
    const first = await claude.messages.stream(asked).finalMessage();
    const call = first.content.find((block) => block.type === "tool_use");
    const result = { role: "user", content: [{ type: "tool_result", tool_use_id: call.id, content: "18 degrees" }] };
    const turns = [...question, { role: "assistant", content: first.content }, result];
    return { arguments: call.input, text: textsOf(await claude.messages.create({ ...asked, messages: turns })) };
  },
  async "messages schema"() {
    const output_config = { format: { type: "json_schema", schema } };
    return JSON.parse(textsOf(await claude.messages.create({ ...messages, model: model(""), output_config })));
  },
  async "messages media"() {
    const source = (media_type, data) => ({ type: "base64", media_type, data });
    const content = [
      { type: "text", text: "What is this?" },
      { type: "image", source: source("image/png", png) },
      ...(readsPdf ? [{ type: "document", source: source("application/pdf", pdf) }] : []),
    ];
    return textsOf(await claude.messages.create({ ...messages, model: model("n3"), messages: [{ role: "user", content }] }));
  },
  "messages error": () => failure(() => claude.messages.create({ ...messages, model: model("e429") })),
  async "messages broken stream"() {
    return gather(await claude.messages.create({ ...messages, model: broken, stream: true }), messageText);
  },
};

const results = {};
for (const [name, run] of Object.entries(scenarios)) {
  try {
    results[name] = await run();
  } catch (error) {
    results[name] = `${error.constructor.name}: ${error.message}`;
  }
}
console.log(JSON.stringify(results));
