#include "router/options.h"

#include <CLI/CLI.hpp>

#include "common/flags.h"
#include "kernels/variant.h"

namespace moiety {

void add_router_flags(CLI::App& app, RouterOptions& options) {
  app.add_option("-m,--model", options.model, "Checkpoint folder")->required();
  app.add_option("--served-model-name", options.served_name,
                 "Name in the API; the model folder's name unless given");
  app.add_option("--host", options.host, "Address of the HTTP endpoint")->capture_default_str();
  app.add_option("--port", options.port, "Port of the HTTP endpoint; 0 = a free one")
      ->capture_default_str();
  app.add_option("--threads", options.threads, "Compute threads; 0 = one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option_function<std::string>(
         "--dtype",
         [&options](const std::string& name) {
           options.dtype = name == "f32" ? DType::kF32 : DType::kBF16;
         },
         "Weights and GEMM inputs as bf16 (default) or f32")
      ->check(CLI::IsMember({"bf16", "f32"}));
  app.add_option("--kernels", options.kernels, "Kernel variant: " + kernels::variant_choices())
      ->capture_default_str();
  app.add_option("--max-num-seqs", options.engine.max_num_seqs, "Most sequences in one step")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--max-num-batched-tokens", options.engine.max_num_batched_tokens,
                 "Token budget of one step: one for each request that generates, the rest for "
                 "prompts in order of arrival (an eighth at least)")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--max-queue", options.engine.max_queue,
                 "Waiting requests, with those of the same deployment that wait for lost experts; "
                 "beyond it: status 429. So in all as many as deployments times this may wait for "
                 "lost experts")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--kv-cache-bytes", options.engine.kv_cache_bytes,
                 "Memory for the KV cache; when it runs out, the youngest requests wait and are "
                 "computed again")
      ->transform(as_bytes())
      ->capture_default_str();
  app.add_flag("!--no-prefix-cache", options.engine.prefix_cache,
               "Compute every prompt in full: keep no KV blocks for requests that begin alike");
  app.add_option_function<std::string>(
         "--generation-config",
         [&options](const std::string& name) { options.generation_config = name == "auto"; },
         "auto (default): requests that leave out temperature, top_p, top_k, min_p or "
         "repetition_penalty get those of the model's generation_config.json; none: the API's")
      ->check(CLI::IsMember({"auto", "none"}));
  app.add_option("--chat-template", options.chat_template,
                 "Chat template (a Jinja file); the model's own unless given")
      ->check(CLI::ExistingFile);
  app.add_option("--request-timeout", options.request_timeout_s,
                 "Seconds a request may take in all")
      ->check(CLI::Range(1, 86400))
      ->capture_default_str();
  app.add_option("--stop-grace-s", options.stop_grace_s,
                 "When told to stop: seconds for requests under way, then they end with an error")
      ->check(CLI::Range(0, 3600))
      ->capture_default_str();
  app.add_option_function<std::string>(
         "--micro-batches",
         [&options](const std::string& name) {
           options.engine.micro_batches = name == "auto" ? MicroBatches::kAuto
                                          : name == "2"  ? MicroBatches::kTwo
                                                         : MicroBatches::kOne;
         },
         "In how many parts a step computes, so that one's experts are computed elsewhere while "
         "the other's attention is computed here; the bits are the same. auto (default): 2 where "
         "that was measured to be faster")
      ->check(CLI::IsMember({"auto", "1", "2"}));
  app.add_flag("!--no-expert-metrics", options.expert_metrics,
               "Leave out moiety_expert_tokens_total (one series per layer and expert)");
}

}  // namespace moiety
