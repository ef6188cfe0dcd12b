#pragma once

#include <memory>
#include <string>

#include "http/server.h"
#include "model/tokenizer.h"
#include "router/engine.h"
#include "router/metrics.h"

namespace moiety {

struct ApiOptions {
  std::string served_name;
  std::chrono::seconds request_timeout{600};
};

/// The OpenAI-compatible HTTP API over an engine:
///   POST /v1/completions   GET /v1/models[/ID]   GET /health   GET /ready   GET /metrics
/// `engine`, `tokenizer` and `metrics` outlive the handler.
http::Handler make_api(Engine& engine,
                       const Tokenizer& tokenizer,
                       RouterMetrics& metrics,
                       const ApiOptions& options);

/// OpenAI's error envelope: {"error": {message, type, param, code}}; `param` and `code` null when
/// empty.
std::string error_envelope(std::string_view message,
                           std::string_view type,
                           std::string_view param,
                           std::string_view code);

/// The envelope of errors that the HTTP server itself makes.
std::string http_error_body(int status, std::string_view message);

}  // namespace moiety
