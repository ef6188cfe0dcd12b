#include "router/api.h"

#include <boost/json.hpp>
#include <random>

#include "router/completion_request.h"

namespace moiety {
namespace json = boost::json;
namespace {

constexpr std::size_t kMaxUnsentBytes = 1u
                                        << 20;  // a client that reads slower than this is cut off

std::int64_t unix_seconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::uint64_t random_number() {
  thread_local std::mt19937_64 generator{std::random_device{}()};
  return generator();
}

http::Response error_response(int status,
                              std::string_view message,
                              std::string_view param,
                              std::string_view code) {
  http::Response response;
  response.status = status;
  response.body =
      error_envelope(message, status < 500 ? "invalid_request_error" : "server_error", param, code);
  if (status == 429 || status == 503) response.headers.emplace("Retry-After", "1");
  return response;
}

http::Response error_response(const Error& error) {
  const ErrorInfo& info = error_info(error.code);
  return error_response(info.http_status, error.message, "", info.name);
}

/// One completion under way: turns tokens into text and text into an answer.
/// Lives from submit to on_finish, shared by the engine's callbacks and the disconnect callback.
class Completion : public std::enable_shared_from_this<Completion> {
 public:
  Completion(Engine& engine,
             const Tokenizer& tokenizer,
             std::shared_ptr<http::Responder> responder,
             const CompletionRequest& request,
             std::string deployment)
      : engine_(engine),
        responder_(std::move(responder)),
        decoder_(tokenizer),
        model_(request.model),
        deployment_(std::move(deployment)),
        stream_(request.stream),
        include_usage_(request.include_usage),
        id_("cmpl-" + std::to_string(random_number())),
        created_(unix_seconds()) {}

  Result<Engine::RequestId> submit(GenerateRequest request) {
    auto self = shared_from_this();
    return engine_.submit(std::move(request),
                          {[self](std::int32_t token) { self->on_token(token); },
                           [self](const Finish& finish) { self->on_finish(finish); }});
  }

  void cancel_on_disconnect(Engine::RequestId id) {
    request_id_ = id;
    responder_->on_disconnect([&engine = engine_, id] { engine.cancel(id); });
  }

 private:
  void on_token(std::int32_t token) {
    std::string piece = decoder_.push(token);
    if (!stream_) {
      text_ += piece;
      return;
    }
    open_stream();
    if (piece.empty()) return;
    send(chunk(piece, nullptr));
    if (responder_->unsent_bytes() > kMaxUnsentBytes) engine_.cancel(request_id_.load());
  }

  void on_finish(const Finish& finish) {
    if (finish.reason == FinishReason::kError) return on_error(finish.error);
    const std::string_view reason = finish_reason_name(finish.reason);
    const std::string rest = decoder_.finish();
    if (!stream_) {
      json::object body = chunk(text_ + rest, json::string(reason));
      body["usage"] = usage(finish);
      body["moiety"] = details(finish);
      responder_->respond({200, "application/json", json::serialize(body) + "\n", {}});
      return;
    }
    open_stream();
    json::object last = chunk(rest, json::string(reason));
    last["moiety"] = details(finish);
    send(last);
    if (include_usage_) {
      json::object body = chunk("", nullptr);
      body["choices"] = json::array();
      body["usage"] = usage(finish);
      send(body);
    }
    close_stream();
  }

  void on_error(const Error& error) {
    if (!streaming_) return responder_->respond(error_response(error));
    const ErrorInfo& info = error_info(error.code);
    responder_->write("data: " + error_envelope(error.message, "server_error", "", info.name) +
                      "\n\n");
    close_stream();
  }

  void open_stream() {
    if (streaming_) return;
    streaming_ = true;
    responder_->start_stream(200, "text/event-stream", {{"Cache-Control", "no-cache"}});
  }

  void close_stream() {
    responder_->write("data: [DONE]\n\n");
    responder_->end();
  }

  void send(const json::object& body) {
    responder_->write("data: " + json::serialize(body) + "\n\n");
  }

  json::object chunk(std::string_view text, json::value finish_reason) const {
    json::object body;
    body["id"] = id_;
    body["object"] = "text_completion";
    body["created"] = created_;
    body["model"] = model_;
    body["choices"] = json::array{json::object{{"index", 0},
                                               {"text", text},
                                               {"logprobs", nullptr},
                                               {"finish_reason", std::move(finish_reason)}}};
    if (stream_ && include_usage_) body["usage"] = nullptr;
    return body;
  }

  static json::object usage(const Finish& finish) {
    return {{"prompt_tokens", finish.prompt_tokens},
            {"completion_tokens", finish.completion_tokens},
            {"total_tokens", finish.prompt_tokens + finish.completion_tokens}};
  }

  json::object details(const Finish& finish) const {
    json::object details;
    // The full model is the deployment of the served name itself.
    details["deployment"] = deployment_.empty() ? model_ : deployment_;
    details["masked_mass"] =
        finish.masked_mass ? json::value(*finish.masked_mass) : json::value(nullptr);
    return details;
  }

  Engine& engine_;
  std::shared_ptr<http::Responder> responder_;
  StreamDecoder decoder_;
  const std::string model_;
  const std::string deployment_;
  const bool stream_;
  const bool include_usage_;
  const std::string id_;
  const std::int64_t created_;
  std::string text_;
  bool streaming_ = false;  // engine thread only
  std::atomic<Engine::RequestId> request_id_{0};
};

class Api {
 public:
  Api(Engine& engine, const Tokenizer& tokenizer, RouterMetrics& metrics, const ApiOptions& options)
      : engine_(engine), tokenizer_(tokenizer), metrics_(metrics), options_(options) {}

  void handle(const http::Request& request, const std::shared_ptr<http::Responder>& responder) {
    static constexpr std::string_view kModels = "/v1/models";
    const bool is_get = request.method == "GET" || request.method == "HEAD";
    const std::string& path = request.path;
    if (path == "/v1/completions") {
      if (request.method != "POST") return wrong_method(request, *responder, "POST");
      return completions(request, responder);
    }
    const bool is_models = path == kModels || path.starts_with(std::string(kModels) + "/");
    const bool known = path == "/health" || path == "/ready" || path == "/metrics" || is_models;
    if (!known) {
      return responder->respond(
          error_response(404, "there is no " + path + " here", "", "not_found"));
    }
    if (!is_get) return wrong_method(request, *responder, "GET");
    if (path == "/health")
      return responder->respond({200, "application/json", "{\"status\":\"ok\"}\n", {}});
    if (path == "/ready") return ready(*responder);
    if (path == "/metrics") {
      return responder->respond({200,
                                 "text/plain; version=0.0.4; charset=utf-8",
                                 metrics_.scrape(engine_.load(), engine_.epoch()),
                                 {}});
    }
    models(path.substr(kModels.size()), *responder);
  }

 private:
  static void wrong_method(const http::Request& request,
                           http::Responder& responder,
                           std::string allowed) {
    http::Response response = error_response(
        405, request.method + " is not allowed on " + request.path + ": use " + allowed, "",
        "method_not_allowed");
    response.headers["Allow"] = std::move(allowed);
    responder.respond(std::move(response));
  }

  void ready(http::Responder& responder) {
    if (engine_.epoch().value == 0) {
      return responder.respond(error_response(503, "no experts are loaded yet", "", "unavailable"));
    }
    responder.respond({200, "application/json", "{\"status\":\"ready\"}\n", {}});
  }

  void models(std::string_view rest, http::Responder& responder) {
    json::array list;
    for (const Engine::DeploymentInfo& info : engine_.deployments()) {
      if (info.draining) continue;
      list.push_back(json::object{{"id", served_as(options_.served_name, info.name)},
                                  {"object", "model"},
                                  {"created", started_},
                                  {"owned_by", "moiety"}});
    }
    if (rest.empty() || rest == "/") {
      const json::object body{{"object", "list"}, {"data", std::move(list)}};
      return responder.respond({200, "application/json", json::serialize(body) + "\n", {}});
    }
    for (const json::value& model : list) {
      if (rest.substr(1) == std::string_view(model.at("id").as_string())) {
        return responder.respond({200, "application/json", json::serialize(model) + "\n", {}});
      }
    }
    responder.respond(model_not_found(std::string(rest.substr(1))));
  }

  http::Response model_not_found(const std::string& model) const {
    std::string names;
    for (const Engine::DeploymentInfo& info : engine_.deployments()) {
      if (!info.draining)
        names += (names.empty() ? "" : ", ") + served_as(options_.served_name, info.name);
    }
    return error_response(404,
                          "the model '" + model + "' is not served here; " +
                              (names.empty() ? "no model is deployed now" : "served are: " + names),
                          "model", "model_not_found");
  }

  void completions(const http::Request& http_request,
                   const std::shared_ptr<http::Responder>& responder) {
    auto parsed = parse_completion_request(http_request.body);
    if (const auto* error = std::get_if<FieldError>(&parsed)) {
      metrics_.on_refused(options_.served_name, "invalid_argument");
      return responder->respond(error_response(400, error->message, error->field, "invalid_value"));
    }
    const auto& request = std::get<CompletionRequest>(parsed);
    std::string deployment;
    const std::string prefix = options_.served_name + ":";
    if (request.model.starts_with(prefix) && request.model.size() > prefix.size()) {
      deployment = request.model.substr(prefix.size());
    } else if (request.model != options_.served_name) {
      metrics_.on_refused(options_.served_name, "not_found");
      return responder->respond(model_not_found(request.model));
    }
    GenerateRequest generate;
    generate.deployment = deployment;
    generate.prompt = std::holds_alternative<std::string>(request.prompt)
                          ? tokenizer_.encode(std::get<std::string>(request.prompt))
                          : std::get<std::vector<std::int32_t>>(request.prompt);
    generate.sampling = {request.temperature, request.top_p,
                         request.seed.value_or(random_number())};
    generate.max_tokens = request.max_tokens;
    if (!request.ignore_eos) generate.stop_ids = engine_.model().architecture().eos_ids;
    generate.deadline = Clock::now() + options_.request_timeout;
    auto completion = std::make_shared<Completion>(engine_, tokenizer_, responder, request,
                                                   std::move(deployment));
    auto id = completion->submit(std::move(generate));
    if (id) return completion->cancel_on_disconnect(*id);
    const Error& error = id.error();
    // A name that is not served is no label: whoever asks could make as many series as they like.
    metrics_.on_refused(error.code == ErrorCode::kNotFound ? options_.served_name : request.model,
                        error_info(error.code).name);
    if (error.code == ErrorCode::kNotFound)
      return responder->respond(model_not_found(request.model));
    if (error.code == ErrorCode::kInvalidArgument) {
      return responder->respond(error_response(400, error.message, "prompt", "invalid_value"));
    }
    responder->respond(error_response(error));
  }

  Engine& engine_;
  const Tokenizer& tokenizer_;
  RouterMetrics& metrics_;
  const ApiOptions options_;
  const std::int64_t started_ = unix_seconds();
};

}  // namespace

std::string error_envelope(std::string_view message,
                           std::string_view type,
                           std::string_view param,
                           std::string_view code) {
  const auto text_or_null = [](std::string_view text) {
    return text.empty() ? json::value(nullptr) : json::value(text);
  };
  return json::serialize(json::object{{"error", json::object{{"message", message},
                                                             {"type", type},
                                                             {"param", text_or_null(param)},
                                                             {"code", text_or_null(code)}}}});
}

std::string http_error_body(int status, std::string_view message) {
  return error_envelope(message, status < 500 ? "invalid_request_error" : "server_error", "",
                        "http_error");
}

http::Handler make_api(Engine& engine,
                       const Tokenizer& tokenizer,
                       RouterMetrics& metrics,
                       const ApiOptions& options) {
  auto api = std::make_shared<Api>(engine, tokenizer, metrics, options);
  return [api](http::Request request, std::shared_ptr<http::Responder> responder) {
    api->handle(request, responder);
  };
}

}  // namespace moiety
