#include "coordinator/store.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>

#include "common/log.h"
#include "common/process_start.h"
#include "coordinator/durable_json.h"

namespace moiety::coordinator {

namespace {

constexpr std::int64_t kApplicationId = 0x4d4f4945;
constexpr std::int64_t kSchema = 2;
// The log is copied into the file when it has so many pages (of 4 KiB): well before the reserve is
// used up, so that the next commit finds room in the log on a full disk.
constexpr std::int64_t kCheckpointPages = 256;

Error damaged(const std::filesystem::path& file, const std::string& what) {
  return fail(ErrorCode::kDataLoss,
              fmt::format("{}: the state file is damaged ({}); move it away to begin with an empty "
                          "cluster, or restore a copy",
                          file.string(), what));
}

/// FILE.lock, locked, with our pid in it.
Result<Fd> lock(const std::filesystem::path& file) {
  const std::string path = file.string() + ".lock";
  Fd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd) return fail(ErrorCode::kIo, fmt::format("{}: {}", path, std::strerror(errno)));
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK)
      return fail(ErrorCode::kIo, fmt::format("{}: {}", path, std::strerror(errno)));
    auto owner = read_file(path, 64);
    return fail(ErrorCode::kFailedPrecondition,
                fmt::format("{}: another coordinator uses this state file (pid {}); stop it or "
                            "give another --state",
                            file.string(), owner && !owner->empty() ? *owner : "unknown"));
  }
  // For the message above only: no harm if it cannot be written.
  const std::string pid = std::to_string(::getpid());
  if (::ftruncate(fd.get(), 0) != 0 ||
      ::pwrite(fd.get(), pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size()))
    errno = 0;
  return fd;
}

Error not_ours(const std::filesystem::path& file) {
  return fail(ErrorCode::kFailedPrecondition,
              fmt::format("{}: is a database, but not a coordinator's; give another --state",
                          file.string()));
}

/// Whether another program's database lies there, found out without a trace in it or beside it. A
/// file in which nothing is seen yet, or no database, is looked at again under the lock.
bool is_of_another_program(const std::filesystem::path& file) {
  std::error_code missing;
  if (std::filesystem::file_size(file, missing) == 0 || missing) return false;
  auto database = SqliteDatabase::open_to_look(file);
  if (!database) return false;
  const auto tables = database->integer("SELECT count(*) FROM sqlite_schema");
  const auto application = database->integer("PRAGMA application_id");
  return tables && *tables > 0 && application && *application != kApplicationId;
}

template <class Int>
Int number(const std::map<std::string, std::string>& meta, const char* key) {
  Int value = 0;
  const auto found = meta.find(key);
  if (found != meta.end())
    std::from_chars(found->second.data(), found->second.data() + found->second.size(), value);
  return value;
}

// SQLite's integers are signed; all 64 bits come back as they were.
std::int64_t bits(std::uint64_t value) { return static_cast<std::int64_t>(value); }
std::uint64_t from_bits(std::int64_t value) { return static_cast<std::uint64_t>(value); }

}  // namespace

Result<Store> Store::open(const std::filesystem::path& file, const std::string& fingerprint) {
  if (file.has_parent_path()) {
    std::error_code error;
    std::filesystem::create_directories(file.parent_path(), error);
    if (error)
      return fail(ErrorCode::kIo, fmt::format("--state {}: cannot make its folder: {}",
                                              file.string(), error.message()));
  }
  if (is_of_another_program(file)) return not_ours(file);
  MOIETY_ASSIGN(Fd locked, lock(file));
  {  // SQLite makes -wal and -shm with the rights of the file itself
    const Fd made(::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!made)
      return fail(ErrorCode::kIo,
                  fmt::format("--state {}: cannot open: {}", file.string(), std::strerror(errno)));
  }
  MOIETY_ASSIGN(SqliteDatabase database, SqliteDatabase::open(file));
  Store store(file, std::move(locked), std::move(database));
  auto opened = store.check_schema();
  if (opened) opened = store.load(fingerprint);
  if (opened) opened = store.keep_reserve();
  if (!opened) {
    if (opened.error().code != ErrorCode::kDataLoss) return opened.error();
    return damaged(file, opened.error().message);
  }
  return store;
}

Result<void> Store::check_schema() {
  // FILE.lock has seen to it that nobody else is there. SQLite told so needs no memory shared with
  // others (FILE-shm), if it hears it before it looks at the file's content for the first time.
  MOIETY_TRY(database_.execute("PRAGMA locking_mode = EXCLUSIVE"));
  MOIETY_ASSIGN(const std::int64_t tables, database_.integer("SELECT count(*) FROM sqlite_schema"));
  MOIETY_ASSIGN(const std::int64_t application, database_.integer("PRAGMA application_id"));
  MOIETY_ASSIGN(const std::int64_t schema, database_.integer("PRAGMA user_version"));
  if (tables > 0 && application != kApplicationId) return not_ours(file_);
  if (tables > 0 && schema > kSchema) {
    return fail(ErrorCode::kFailedPrecondition,
                fmt::format("{}: was written by a newer Moiety (schema {}, this one knows {}); use "
                            "that one, or give another --state",
                            file_.string(), schema, kSchema));
  }
  MOIETY_TRY(database_.execute(
      "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 1000"));
  MOIETY_TRY(database_.execute(fmt::format("PRAGMA wal_autocheckpoint = {}", kCheckpointPages)));
  if (tables == 0) return make_schema();
  if (schema < 2) {  // where every failure was one that had been rolled back
    MOIETY_ASSIGN(SqliteTransaction transaction, SqliteTransaction::begin(database_));
    MOIETY_TRY(database_.execute(
        "ALTER TABLE operations ADD COLUMN rolled_back INTEGER;"
        "UPDATE operations SET rolled_back = (error_code IS NOT NULL); PRAGMA user_version = 2"));
    MOIETY_TRY(transaction.commit());
  }
  MOIETY_ASSIGN(SqliteStatement check, database_.prepare("PRAGMA integrity_check(1)"));
  MOIETY_ASSIGN(const bool row, check.step());
  if (!row || check.text(0) != "ok")
    return fail(ErrorCode::kDataLoss, row ? check.text(0) : "no answer to an integrity check");
  return {};
}

Result<void> Store::make_schema() {
  MOIETY_ASSIGN(SqliteTransaction transaction, SqliteTransaction::begin(database_));
  MOIETY_TRY(database_.execute(fmt::format(
      "PRAGMA application_id = {}; PRAGMA user_version = {};"
      "CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
      "CREATE TABLE placement(key TEXT PRIMARY KEY, value TEXT NOT NULL);"
      "CREATE TABLE workers(id INTEGER PRIMARY KEY, incarnation INTEGER, pid INTEGER,"
      "  start_time INTEGER, runs INTEGER, ending INTEGER, retired INTEGER, losses INTEGER);"
      "CREATE TABLE operations(position INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL,"
      "  kind INTEGER, state INTEGER, name TEXT, worker INTEGER, deployments TEXT,"
      "  request_hash INTEGER, error_code TEXT, error_message TEXT, epoch INTEGER,"
      "  bytes_loaded INTEGER, bytes_dropped INTEGER, experts_loaded INTEGER,"
      "  experts_dropped INTEGER, rolled_back INTEGER);"
      "CREATE TABLE reserve(bytes BLOB);"
      "INSERT INTO reserve VALUES(zeroblob({}));",
      kApplicationId, kSchema, kReserveBytes)));
  return transaction.commit();
}

// Two places must have room: the log, which every commit writes first, and the file, into which the
// log is copied. What was written once and is free again belongs to them.
Result<void> Store::keep_reserve() {
  auto kept = database_.execute("DELETE FROM reserve");  // of a start that was cut short
  if (kept) {
    MOIETY_ASSIGN(const std::int64_t page, database_.integer("PRAGMA page_size"));
    MOIETY_ASSIGN(const std::int64_t free_pages, database_.integer("PRAGMA freelist_count"));
    std::error_code none_yet;
    const std::uint64_t log_bytes = std::filesystem::file_size(file_.string() + "-wal", none_yet);
    if (none_yet || log_bytes < kReserveBytes ||
        static_cast<std::uint64_t>(free_pages * page) < kReserveBytes) {
      kept =
          database_.execute(fmt::format("INSERT INTO reserve VALUES(zeroblob({}))", kReserveBytes));
      if (kept) kept = database_.execute("DELETE FROM reserve");
    }
  }
  if (!kept) {
    if (kept.error().code == ErrorCode::kDataLoss) return kept;
    log_warning("{}; no room is set aside in it until the next start", kept.error().message);
    return {};
  }
  // From here on the log is written from its beginning again.
  MOIETY_ASSIGN(const std::int64_t busy, database_.integer("PRAGMA wal_checkpoint(RESTART)"));
  if (busy != 0)
    return fail(ErrorCode::kIo, fmt::format("{}: another program uses it", file_.string()));
  return {};
}

Result<void> Store::load(const std::string& fingerprint) {
  std::map<std::string, std::string> meta;
  std::map<std::string, std::string> placement;
  for (auto* table : {&meta, &placement}) {
    MOIETY_ASSIGN(SqliteStatement rows,
                  database_.prepare(table == &meta ? "SELECT key, value FROM meta"
                                                   : "SELECT key, value FROM placement"));
    for (;;) {
      MOIETY_ASSIGN(const bool row, rows.step());
      if (!row) break;
      table->emplace(rows.text(0), rows.text(1));
    }
  }
  identity_ = {meta["fingerprint"], meta["token"], number<std::uint16_t>(meta, "control_port"),
               number<std::uint16_t>(meta, "admin_port")};
  if (!identity_.fingerprint.empty() && identity_.fingerprint != fingerprint) {
    return fail(ErrorCode::kFailedPrecondition,
                fmt::format("{}: belongs to a cluster of another checkpoint (fingerprint {}, this "
                            "one has {}); give another --state, or begin anew without this file "
                            "(`moiety up --fresh`)",
                            file_.string(), identity_.fingerprint, fingerprint));
  }
  identity_.fingerprint = fingerprint;

  if (meta.contains("epoch_counter")) {
    DurableState state;
    state.epoch_counter = number<std::uint64_t>(meta, "epoch_counter");
    state.incarnation_counter = number<std::uint64_t>(meta, "incarnation_counter");
    state.operation_counter = number<std::uint64_t>(meta, "operation_counter");
    state.router_counter = number<std::uint32_t>(meta, "router_counter");
    if (const auto view = placement.find("published"); view != placement.end()) {
      MOIETY_ASSIGN(state.published, view_from_json(view->second));
    }
    if (const auto steady = placement.find("steady"); steady != placement.end()) {
      MOIETY_ASSIGN(state.steady, placement_from_json(steady->second));
    }
    MOIETY_TRY(load_workers(state));
    MOIETY_TRY(load_operations(state));
    written_ = state;
    if (meta["boot_id"] != boot_id()) {
      for (DurableWorker& each : state.workers) each.process = {};
    }
    restored_ = std::move(state);
  }
  return put("meta", "boot_id", boot_id());
}

Result<std::vector<DurableWorker>> Store::workers_left_in(const std::filesystem::path& file) {
  MOIETY_ASSIGN(SqliteDatabase database, SqliteDatabase::open(file));
  Store store(file, Fd(), std::move(database));
  DurableState state;
  MOIETY_TRY(store.load_workers(state));
  MOIETY_ASSIGN(SqliteStatement same_boot,
                store.database_.prepare("SELECT 1 FROM meta WHERE key = 'boot_id' AND value = ?"));
  same_boot.bind(1, boot_id());
  MOIETY_ASSIGN(const bool may_run, same_boot.step());
  if (!may_run) state.workers.clear();
  return std::move(state.workers);
}

Result<void> Store::load_workers(DurableState& state) {
  MOIETY_ASSIGN(SqliteStatement rows,
                database_.prepare("SELECT id, incarnation, pid, start_time, runs, ending, retired, "
                                  "losses FROM workers ORDER BY id"));
  for (;;) {
    MOIETY_ASSIGN(const bool row, rows.step());
    if (!row) return {};
    DurableWorker worker;
    worker.id = WorkerId{static_cast<std::uint32_t>(rows.integer(0))};
    worker.incarnation = from_bits(rows.integer(1));
    worker.process = {rows.integer(2), from_bits(rows.integer(3))};
    worker.runs = rows.integer(4) != 0;
    worker.ending = rows.integer(5) != 0;
    worker.retired = rows.integer(6) != 0;
    worker.losses = from_bits(rows.integer(7));
    state.workers.push_back(worker);
  }
}

Result<void> Store::load_operations(DurableState& state) {
  MOIETY_ASSIGN(
      SqliteStatement rows,
      database_.prepare("SELECT id, kind, state, name, worker, deployments, request_hash, "
                        "error_code, error_message, epoch, bytes_loaded, bytes_dropped, "
                        "experts_loaded, experts_dropped, rolled_back FROM operations ORDER BY "
                        "position"));
  for (;;) {
    MOIETY_ASSIGN(const bool row, rows.step());
    if (!row) return {};
    DurableOperation operation;
    operation.id = {rows.text(0)};
    operation.kind = static_cast<OperationKind>(rows.integer(1));
    operation.state = static_cast<OperationState>(rows.integer(2));
    if (rows.integer(1) > static_cast<int>(OperationKind::kRebalance) ||
        rows.integer(2) > static_cast<int>(OperationState::kFailed))
      return fail(ErrorCode::kDataLoss, "operation " + operation.id.value + " is of no known kind");
    operation.name = rows.text(3);
    if (!rows.is_null(4)) operation.worker = WorkerId{static_cast<std::uint32_t>(rows.integer(4))};
    MOIETY_ASSIGN(operation.deployments, deployments_from_json(rows.text(5)));
    operation.request_hash = from_bits(rows.integer(6));
    if (!rows.is_null(7)) operation.error = {error_code_from_name(rows.text(7)), rows.text(8)};
    operation.epoch = Epoch{from_bits(rows.integer(9))};
    operation.cost = {from_bits(rows.integer(10)), from_bits(rows.integer(11)), rows.integer(12),
                      rows.integer(13)};
    operation.rolled_back = rows.integer(14) != 0;
    state.operations.push_back(std::move(operation));
  }
}

Result<void> Store::put(std::string_view table, std::string_view key, std::string_view value) {
  MOIETY_ASSIGN(
      SqliteStatement statement,
      database_.prepare(fmt::format("INSERT INTO {} VALUES(?, ?) ON CONFLICT(key) DO UPDATE SET "
                                    "value = excluded.value WHERE value <> excluded.value",
                                    table)));
  statement.bind(1, key);
  statement.bind(2, value);
  return statement.run();
}

Result<void> Store::set_identity(const StoreIdentity& identity) {
  MOIETY_ASSIGN(SqliteTransaction transaction, SqliteTransaction::begin(database_));
  MOIETY_TRY(put("meta", "fingerprint", identity.fingerprint));
  MOIETY_TRY(put("meta", "token", identity.token));
  MOIETY_TRY(put("meta", "control_port", std::to_string(identity.control_port)));
  MOIETY_TRY(put("meta", "admin_port", std::to_string(identity.admin_port)));
  MOIETY_TRY(transaction.commit());
  identity_ = identity;
  return {};
}

Result<void> Store::persist(const DurableState& state) {
  if (written_ && *written_ == state) return {};
  const bool all = !written_;
  MOIETY_ASSIGN(SqliteTransaction transaction, SqliteTransaction::begin(database_));
  MOIETY_TRY(put("meta", "epoch_counter", std::to_string(state.epoch_counter)));
  MOIETY_TRY(put("meta", "incarnation_counter", std::to_string(state.incarnation_counter)));
  MOIETY_TRY(put("meta", "operation_counter", std::to_string(state.operation_counter)));
  MOIETY_TRY(put("meta", "router_counter", std::to_string(state.router_counter)));
  if (state.published && (all || written_->published != state.published))
    MOIETY_TRY(put("placement", "published", view_to_json(*state.published)));
  if (all || written_->steady != state.steady)
    MOIETY_TRY(put("placement", "steady", placement_to_json(state.steady)));
  if (all || written_->workers != state.workers) MOIETY_TRY(write_workers(state));
  if (all || written_->operations != state.operations) MOIETY_TRY(write_operations(state));
  MOIETY_TRY(transaction.commit());
  written_ = state;
  return {};
}

Result<void> Store::write_workers(const DurableState& state) {
  MOIETY_TRY(database_.execute("DELETE FROM workers"));
  MOIETY_ASSIGN(SqliteStatement insert,
                database_.prepare("INSERT INTO workers VALUES(?, ?, ?, ?, ?, ?, ?, ?)"));
  for (const DurableWorker& each : state.workers) {
    insert.bind(1, each.id.value);
    insert.bind(2, bits(each.incarnation));
    insert.bind(3, each.process.pid);
    insert.bind(4, bits(each.process.start_time));
    insert.bind(5, std::int64_t{each.runs});
    insert.bind(6, std::int64_t{each.ending});
    insert.bind(7, std::int64_t{each.retired});
    insert.bind(8, bits(each.losses));
    MOIETY_TRY(insert.run());
  }
  return {};
}

Result<void> Store::write_operations(const DurableState& state) {
  MOIETY_TRY(database_.execute("DELETE FROM operations"));
  MOIETY_ASSIGN(SqliteStatement insert,
                database_.prepare("INSERT INTO operations VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, "
                                  "?, ?, ?, ?, ?)"));
  std::int64_t position = 0;
  for (const DurableOperation& each : state.operations) {
    insert.bind(1, position++);
    insert.bind(2, each.id.value);
    insert.bind(3, static_cast<std::int64_t>(each.kind));
    insert.bind(4, static_cast<std::int64_t>(each.state));
    insert.bind(5, each.name);
    insert.bind_null(6);
    if (each.worker) insert.bind(6, each.worker->value);
    insert.bind(7, deployments_to_json(each.deployments));
    insert.bind(8, bits(each.request_hash));
    insert.bind_null(9);
    insert.bind_null(10);
    if (each.error) {
      insert.bind(9, error_info(each.error->code).name);
      insert.bind(10, each.error->message);
    }
    insert.bind(11, bits(each.epoch.value));
    insert.bind(12, bits(each.cost.bytes_loaded));
    insert.bind(13, bits(each.cost.bytes_dropped));
    insert.bind(14, each.cost.experts_loaded);
    insert.bind(15, each.cost.experts_dropped);
    insert.bind(16, std::int64_t{each.rolled_back});
    MOIETY_TRY(insert.run());
  }
  return {};
}

Result<void> Store::check_room() const {
  const std::filesystem::path folder =
      file_.has_parent_path() ? file_.parent_path() : std::filesystem::path(".");
  struct statvfs disk {};
  if (::statvfs(folder.c_str(), &disk) != 0) return {};  // persist() will say what is wrong
  const std::uint64_t free_bytes = std::uint64_t{disk.f_bavail} * disk.f_frsize;
  if (free_bytes >= kReserveBytes) return {};
  return fail(ErrorCode::kResourceExhausted,
              fmt::format("{}: the disk of the state file is full ({} bytes are free, a change "
                          "needs {}); the cluster goes on as it is",
                          file_.string(), free_bytes, kReserveBytes));
}

Result<void> Store::limit_size(std::uint64_t bytes) {
  MOIETY_ASSIGN(const std::int64_t page, database_.integer("PRAGMA page_size"));
  MOIETY_ASSIGN(const std::int64_t pages,
                database_.integer(fmt::format("PRAGMA max_page_count = {}",
                                              static_cast<std::int64_t>(bytes) / page)));
  (void)pages;
  return {};
}

}  // namespace moiety::coordinator
