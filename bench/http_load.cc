#include "bench/http_load.h"

#include <algorithm>
#include <boost/json.hpp>
#include <chrono>
#include <cmath>
#include <mutex>
#include <random>
#include <thread>

#include "http/client.h"

namespace moiety::bench {
namespace json = boost::json;
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::minutes kRequestTimeout{10};

double seconds(Clock::duration time) { return std::chrono::duration<double>(time).count(); }

std::string request_body(const HttpLoadOptions& options, std::mt19937_64& random) {
  json::array prompt;
  for (std::int32_t i = 0; i < options.prompt_tokens; ++i) {
    prompt.push_back(static_cast<std::int64_t>(
        random() % static_cast<std::uint64_t>(std::max(options.vocab_size, 1))));
  }
  return json::serialize(json::object{{"model", options.model},
                                      {"prompt", prompt},
                                      {"max_tokens", options.max_tokens},
                                      {"temperature", 0},
                                      {"ignore_eos", true},
                                      {"stream", true},
                                      {"stream_options", {{"include_usage", true}}}});
}

/// One request as it happens.
struct Exchange {
  Clock::time_point began;
  std::optional<Clock::time_point> last_text;
  HttpLoadResult* seen = nullptr;
  std::int64_t completion_tokens = 0, prompt_tokens = 0;
  std::string error;

  void event(const std::string& data) {
    if (data == "[DONE]") return;
    boost::system::error_code ec;
    const json::value chunk = json::parse(data, ec);
    const json::object* object = ec ? nullptr : chunk.if_object();
    if (object == nullptr || object->contains("error")) {
      error = data;
      return;
    }
    const json::value* usage = object->if_contains("usage");
    if (usage != nullptr && usage->is_object()) {
      prompt_tokens = usage->at("prompt_tokens").to_number<std::int64_t>();
      completion_tokens = usage->at("completion_tokens").to_number<std::int64_t>();
    }
    const json::value* choices = object->if_contains("choices");
    if (choices == nullptr || !choices->is_array() || choices->get_array().empty()) return;
    const json::object& choice = choices->get_array()[0].as_object();
    const json::value* text = choice.if_contains("text");
    if (text == nullptr || !text->is_string() || text->get_string().empty()) return;
    const Clock::time_point now = Clock::now();
    if (last_text) {
      seen->gap_seconds.push_back(seconds(now - *last_text));
    } else {
      seen->first_token_seconds.push_back(seconds(now - began));
    }
    last_text = now;
  }
};

Result<void> run_request(const HttpLoadOptions& options,
                         std::mt19937_64& random,
                         HttpLoadResult& seen) {
  const std::string body = request_body(options, random);
  Exchange exchange;
  exchange.began = Clock::now();
  exchange.seen = &seen;
  EventReader reader;
  std::string plain;  // what an error answer says
  MOIETY_ASSIGN(const http::Response response,
                http::request_stream("POST", options.url + "/v1/completions", body, kRequestTimeout,
                                     [&](std::string_view piece) {
                                       if (plain.size() < 4096) plain += piece;
                                       for (const std::string& data : reader.push(piece))
                                         exchange.event(data);
                                     }));
  if (response.status != 200) {
    return fail(ErrorCode::kInternal,
                options.url + ": status " + std::to_string(response.status) + ": " + plain);
  }
  if (!exchange.error.empty()) {
    return fail(ErrorCode::kInternal, options.url + ": " + exchange.error);
  }
  if (exchange.completion_tokens != options.max_tokens) {
    return fail(ErrorCode::kInternal, options.url + ": a stream ended after " +
                                          std::to_string(exchange.completion_tokens) + " of " +
                                          std::to_string(options.max_tokens) + " tokens");
  }
  seen.prompt_tokens += exchange.prompt_tokens;
  seen.completion_tokens += exchange.completion_tokens;
  return {};
}

}  // namespace

std::vector<std::string> EventReader::push(std::string_view piece) {
  pending_ += piece;
  std::vector<std::string> events;
  for (;;) {
    // A line ends with LF or CRLF; an event with an empty line.
    const std::size_t lf = pending_.find("\n\n"), crlf = pending_.find("\n\r\n");
    const std::size_t end = std::min(lf, crlf);
    if (end == std::string::npos) return events;
    std::string data;
    for (std::size_t at = 0; at <= end;) {
      const std::size_t stop = pending_.find('\n', at);
      std::string_view line(pending_.data() + at, stop - at);
      if (line.ends_with('\r')) line.remove_suffix(1);
      if (line.starts_with("data:")) {
        line.remove_prefix(line.starts_with("data: ") ? 6 : 5);
        if (!data.empty()) data += '\n';
        data += line;
      }
      at = stop + 1;
    }
    if (!data.empty()) events.push_back(std::move(data));
    pending_.erase(0, end + (end == lf ? 2 : 3));
  }
}

double HttpLoadResult::tokens_per_second() const {
  return static_cast<double>(prompt_tokens + completion_tokens) / seconds;
}

Result<HttpLoadResult> run_http_load(const HttpLoadOptions& options,
                                     const std::atomic<bool>& stop) {
  const auto count = static_cast<std::size_t>(options.streams);
  std::vector<HttpLoadResult> seen(count);
  std::vector<Result<void>> outcomes(count);
  std::atomic<bool> failed{false};
  std::vector<std::thread> threads;
  const Clock::time_point began = Clock::now();
  for (std::size_t stream = 0; stream < count; ++stream) {
    threads.emplace_back([&, stream] {
      std::mt19937_64 random(options.seed * 1000 + stream);
      for (std::int32_t i = 0; i < options.requests && !stop && !failed; ++i) {
        outcomes[stream] = run_request(options, random, seen[stream]);
        if (!outcomes[stream]) failed = true;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  HttpLoadResult all;
  all.seconds = seconds(Clock::now() - began);
  if (stop) return fail(ErrorCode::kCancelled, "interrupted");
  for (std::size_t i = 0; i < count; ++i) {
    MOIETY_TRY(outcomes[i]);
    const auto append = [](std::vector<double>& to, const std::vector<double>& from) {
      to.insert(to.end(), from.begin(), from.end());
    };
    all.prompt_tokens += seen[i].prompt_tokens;
    all.completion_tokens += seen[i].completion_tokens;
    append(all.first_token_seconds, seen[i].first_token_seconds);
    append(all.gap_seconds, seen[i].gap_seconds);
  }
  return all;
}

double percentile(std::vector<double> values, double fraction) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double rank = std::ceil(fraction * static_cast<double>(values.size()));
  const auto index = static_cast<std::size_t>(std::max(rank - 1, 0.0));
  return values[std::min(index, values.size() - 1)];
}

}  // namespace moiety::bench
