// Threads that are created once and wait for tasks.

#include "parallel.h"

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

class Pool {
 public:
  void do_all(Tasks &tasks, int cores) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      grow(cores - 1);
      tasks.n_wanted_ = std::min(cores - 1, n_threads_);
      if (tasks.n_wanted_ > 0) waiting_.push_back(&tasks);
    }
    wake_.notify_one();
    tasks.work();
    std::unique_lock<std::mutex> lock(mutex_);
    const auto at = std::find(waiting_.begin(), waiting_.end(), &tasks);
    if (at != waiting_.end()) waiting_.erase(at);
    done_.wait(lock, [&] { return tasks.n_working_ == 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::deque<Tasks *> waiting_;  // tasks that want more threads
  int n_threads_ = 0;

  void grow(int n_wanted) {
    try {
      for (; n_threads_ < n_wanted; n_threads_++) std::thread([this] { serve(); }).detach();
    } catch (const std::exception &) {  // no more threads can be created: use the existing ones
    }
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      wake_.wait(lock, [&] { return !waiting_.empty(); });
      Tasks &tasks = *waiting_.front();
      if (--tasks.n_wanted_ == 0 || !tasks.are_left()) waiting_.pop_front();
      if (!tasks.are_left()) continue;
      tasks.n_working_++;
      // Each thread wakes the next one, so that no thread is woken without a task.
      if (!waiting_.empty()) wake_.notify_one();
      lock.unlock();
      tasks.work();
      lock.lock();
      if (--tasks.n_working_ == 0) done_.notify_all();
    }
  }
};

void Tasks::work() {
  try {
    for (int i; fits_ && (i = next_++) < n_;) task_(context_, i);
  } catch (const std::bad_alloc &) {
    fits_ = false;
  }
}

void do_all(Tasks &tasks, int cores) {
  static Pool &pool = *new Pool;  // never destroyed: its threads use it until the process ends
  pool.do_all(tasks, cores);
}
