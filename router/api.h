#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "http/server.h"
#include "model/chat_template.h"
#include "model/generation_config.h"
#include "model/tokenizer.h"
#include "router/engine.h"
#include "router/metrics.h"

namespace moiety {

struct ApiOptions {
  std::string served_name;
  std::chrono::seconds request_timeout{600};
  GenerationDefaults defaults;  ///< for fields that a request leaves out
  struct Chat {
    std::optional<ChatTemplate> chat_template = {};
    std::string missing = {};  ///< why there is none, for who asks for a chat
  };
  Chat chat = {};
  std::optional<Chat> tool_chat =
      {};  ///< for requests with tools, where the checkpoint has another
};

/// The OpenAI-compatible HTTP API over an engine:
///   POST /v1/completions   POST /v1/chat/completions   GET /v1/models[/ID]
///   GET /health   GET /ready   GET /metrics
/// Bodies of the POST requests are read, and prompts tokenized, on threads of its own, those of
/// more than 64 KiB on another than the others, so that large ones hold up neither the server nor
/// small ones. Who left, or whose deadline passed, before its turn came costs no more work.
class Api {
 public:
  /// `engine`, `tokenizer` and `metrics` outlive it.
  Api(Engine& engine, const Tokenizer& tokenizer, RouterMetrics& metrics, ApiOptions options);
  /// Waits for the requests that its threads work on; those that still wait are dropped. Stop the
  /// server first, and let the engine go afterwards.
  ~Api();

  /// Must not be called any more once the Api is gone.
  http::Handler handler();

 private:
  class Routes;
  std::unique_ptr<Routes> routes_;
};

}  // namespace moiety
