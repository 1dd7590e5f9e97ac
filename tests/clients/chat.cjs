// Asks the server at argv[2] with the body on standard input; prints its answer, or each event of a stream, as JSON.
const fs = require("node:fs");
const { OpenAI } = require("openai");

async function main() {
  const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
  const body = JSON.parse(fs.readFileSync(0, "utf8"));
  const answer = await client.chat.completions.create(body);
  if (!body.stream) {
    console.log(JSON.stringify(answer));
    return;
  }
  for await (const chunk of answer) console.log(JSON.stringify(chunk));
}

main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
